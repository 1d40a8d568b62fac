"""The camera as the daemon sees it: a process that is kept running, watched and replaced when it fails."""

from __future__ import annotations

import asyncio
import base64
import math
import random
import sys
import time
from typing import TYPE_CHECKING

from edge.camera.children import Children
from edge.camera.encodes import Encodes
from edge.camera.failure_log import FailureLog
from edge.camera.lifecycle import Effect, Lifecycle, ProcessPhase
from edge.camera.port import CameraState
from edge.camera.requests import Requests
from edge.camera.wire import (
    Closed,
    Done,
    Dropped,
    Failed,
    Opened,
    Probe,
    Probed,
    Ready,
    SdFailed,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
)
from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import level_for
from edge.core.camera_controls import check, in_force, still_accepted
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge.camera.lifecycle import Remedy
    from edge.camera.port import Opening
    from edge.camera.settings import CameraSettings
    from edge.camera.wire import Order, Report
    from edge.core.access_unit import StreamFormat
    from edge.core.camera_controls import ControlValues, Offered

_RETRY_NOW_S = 1.0
"""Callers skip the back-off at most this often: each try may cost a new process."""
_STALL_PICTURES = 3
"""At a low frame rate, this many missing pictures are a stall."""
_ENDED = "the camera process ended unexpectedly"


class CameraProcess:
    """The camera, over a child process. Event loop only; the callbacks are called from the loop.

    `on_unit` gets every access unit while the camera runs. `on_change` is called after `state`, `source`, `opening`,
    `error`, `sd_error`, `reopens`, `restarts` or `pid` changed. An error that either raises ends `run` with it.
    `on_sd_failed` gets the reason when SD was requested and failed; SD then stays off until it is requested again.
    `values`: the controls that were set before the daemon restarted.
    """

    def __init__(
        self,
        settings: CameraSettings,
        on_unit: Callable[[AccessUnit], None],
        on_change: Callable[[], None],
        on_sd_failed: Callable[[str], None] = lambda _: None,
        *,
        values: ControlValues | None = None,
        command: Sequence[str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.state = CameraState.CLOSED
        self.source: str | None = None
        """The kind of source: picamera2, synthetic or file. None until the first process is up."""
        self.opening: Opening | None = None
        """None unless the camera runs."""
        self.error: CameraUnavailable | None = None
        """Why there is no picture, or would be none if the camera were opened."""
        self.reopens = 0
        self.restarts = 0
        self.pid: int | None = None
        self.dropped = 0
        """Access units that the process dropped because the daemon was slow to read."""
        self._settings = settings
        self._on_unit = on_unit
        self._on_change = on_change
        self._command = command
        self._now_s = now_s
        self._life = Lifecycle(settings.open_timeout_s, settings.stall_s, draw)
        self._encodes = Encodes(settings, self._order_while_running, self._current, on_sd_failed, now_s)
        self._sd_stall_s = settings.stall_s
        self._requests = Requests(self._order_while_running)
        self._values: ControlValues = dict(values or {})
        self._retried_s = float("-inf")
        self._published: tuple[object, ...] = ()
        self._failures = FailureLog()
        self._children = Children(self._receive, self._lose, self._leave_behind, self._release)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    # What the daemon asks of the camera.

    def want(self, wanted: bool) -> None:
        """Say whether the camera should be open; idempotent. `run` follows."""
        self._life.want(self._now_s(), wanted=wanted)
        self._wake.set()
        self._publish()

    async def opened(self) -> StreamFormat:
        """Wait until the camera runs, `open_timeout_s` at most.

        Raises: CameraUnavailable: it cannot be opened now, or it is not wanted.
        """
        life = self._life
        if self._now_s() - self._retried_s >= _RETRY_NOW_S:
            self._retried_s = self._now_s()
            life.retry_now(self._retried_s)
            self._wake.set()
        failures, restarts = life.failures, life.restarts
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                while life.opening is None:
                    if not life.wanted:
                        raise CameraUnavailable("the camera is closing")
                    # A crash heals by itself, so one restart is waited for. A failure of the source is final.
                    if life.error and (life.failures > failures or life.restarts > restarts + 1):
                        raise _copy(life.error)
                    await self._changed.wait()
        except TimeoutError:
            if life.error:
                raise _copy(life.error) from None
            raise CameraUnavailable(f"the camera did not open within {self._settings.open_timeout_s:g} s") from None
        return life.opening.format

    async def closed(self) -> None:
        """Wait until the source is closed, after `want(False)`. Returns at once while the camera is wanted.

        Bounded: a source that does not close is killed with its process.
        """
        open_phases = {ProcessPhase.OPENING, ProcessPhase.RUNNING, ProcessPhase.CLOSING}
        while not self._life.wanted and self._life.phase in open_phases:
            await self._changed.wait()

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """What it can encode; nothing while it is not open."""
        return self.opening.qualities if self.opening else ()

    @property
    def sd_level_idc(self) -> int:
        """The H.264 level of SD, times ten."""
        return level_for(*self._settings.sd.stream)

    @property
    def offered(self) -> Mapping[str, Offered]:
        """The controls of the camera; none while it is not open."""
        return self.opening.offered if self.opening else {}

    @property
    def values(self) -> ControlValues:
        """The controls that are set. While the camera is open: those that it accepts."""
        return still_accepted(self._values, self.opening.offered) if self.opening else dict(self._values)

    @property
    def sd_error(self) -> str | None:
        """Why SD failed last; None once it has delivered a picture again."""
        return self._encodes.sd_error

    @property
    def recovery(self) -> tuple[Remedy | None, str, int]:
        """The last remedy that was tried, why, and how often the camera stalled."""
        return self._life.remedy, self._life.why, self._life.stalls

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        """What the settings allow, in bits per second."""
        return self._encodes.bitrate_range(quality)

    def apply_settings(self, settings: CameraSettings) -> None:
        """Set other bitrate ranges. An open camera is opened again with them, and viewers see a short pause."""
        self._settings = settings
        if self._encodes.apply_settings(settings):
            self._life.reconfigure(self._now_s())
            self._wake.set()

    async def picture(self, *, sd: bool) -> None:
        """Wait for a picture that was made with the present settings. `sd`: also for one of SD, if the source has SD.

        Raises: CameraUnavailable: SD failed.
        """
        await self._encodes.picture(sd=sd)

    def encode_sd(self, *, on: bool) -> None:
        """Say whether viewers need SD; idempotent. It holds over restarts of the camera."""
        self._encodes.encode_sd(on=on)

    def request_keyframe(self, quality: Quality) -> None:
        """Does nothing while the camera is not running."""
        self._encodes.request_keyframe(quality)

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate, within the range of the settings. It holds over restarts of the camera."""
        self._encodes.set_bitrate(quality, bitrate_bps)

    async def set_controls(self, values: ControlValues) -> ControlValues:
        """Set some controls of the running camera. Returns the values in force of all.

        Raises: Rejected: the camera does not accept a value; the error lists what it accepts. CameraUnavailable: the
        camera is not open, or fails.
        """
        opening = self._running()
        check(values, opening.offered)
        await self._requests.request(lambda ticket: SetControls(ticket, values))
        self._values = still_accepted({**self._values, **values}, opening.offered)
        self._update_stall_time(opening)
        return in_force(self._values, opening.offered)

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """One picture of the running camera as a JPEG.

        Raises: CameraUnavailable: the camera is not open, or delivers no picture in time.
        """
        self._running()
        done = await self._requests.request(lambda ticket: TakeSnapshot(ticket, width, jpeg_quality))
        return base64.b64decode(done.base64 or "")

    # The part.

    async def run(self, ready: asyncio.Event) -> None:
        """Own the camera process until cancelled. `ready` is set at once: a missing camera delays nothing."""
        ready.set()
        try:
            while True:
                self._wake.clear()
                await self._follow()
                await self._sleep()
        finally:
            self._life.end()
            self._publish()
            await self._children.end()

    async def _follow(self) -> None:
        """Carry out what the rules say until there is nothing left to do now."""
        await self._children.reap()
        while (effect := self._life.step(self._now_s())) is not None:
            await self._carry_out(effect)
            self._publish()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                try:
                    await self._children.spawn(self._command or _own_command(self._settings))
                except OSError as exc:
                    self._life.lost(f"the camera process cannot be started: {exc}", self._now_s())
            case Effect.PROBE:
                self._children.order(Probe())
            case Effect.START:
                self._children.order(Start(self._values, self._settings.model_dump(mode="json")))
            case Effect.STOP:
                self._children.order(Stop())
            case Effect.KILL:
                self._children.drop()
                self._requests.fail_all(_ENDED)
                self._publish()
                await self._children.reap()

    async def _sleep(self) -> None:
        wait_s = max(0.0, self._life.due_s - self._now_s())
        try:
            async with asyncio.timeout(wait_s if math.isfinite(wait_s) else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    # What the process sends.

    def _receive(self, message: AccessUnit | Report) -> None:
        now_s = self._now_s()
        if isinstance(message, AccessUnit):
            self._receive_unit(message, now_s)
            return
        self._receive_report(message, now_s)
        self._wake.set()
        self._publish()

    def _receive_unit(self, unit: AccessUnit, now_s: float) -> None:
        if unit.quality is Quality.HD:
            self._life.unit(now_s)
        if self._life.phase is ProcessPhase.RUNNING:
            self._encodes.delivered(unit.quality, self._sd_stall_s)
            self._on_unit(unit)

    def _receive_report(self, report: Report, now_s: float) -> None:
        match report:
            case Ready(source, missing, detail):
                self.source = source
                self._life.ready(now_s, _missing(missing, detail))
            case Probed(missing, detail):
                self._life.probed(now_s, _missing(missing, detail))
            case Closed():
                self._life.closed(now_s)
            case Failed(message, detail):
                self._life.failed(CameraUnavailable(message, detail=detail), now_s)
            case _:
                self._receive_while_open(report, now_s)

    def _receive_while_open(self, report: Report, now_s: float) -> None:
        match report:
            case Opened(opening):
                self._life.opened(opening, now_s)
                self._update_stall_time(opening)
                self._encodes.opened(sd_offered=Quality.SD in opening.qualities)
            case SdFailed(reason, number):
                self._encodes.sd_failed(reason, number)
            case Done():
                self._requests.answer(report)
            case Dropped(count):
                self.dropped += count

    def _lose(self) -> None:
        self._requests.fail_all(_ENDED)
        self._life.lost(_ENDED, self._now_s())
        self._publish()
        self._wake.set()

    def _leave_behind(self, pid: int | None) -> None:
        self._life.stuck(pid, self._now_s())
        self._publish()

    def _release(self) -> None:
        self._life.released(self._now_s())
        self._wake.set()

    def _update_stall_time(self, opening: Opening) -> None:
        fps = still_accepted(self._values, opening.offered).get("fps") or opening.format.fps
        self._life.stall_s = max(self._settings.stall_s, _STALL_PICTURES / fps)
        sd_fps = fps * self._settings.sd.fps / self._settings.hd.fps
        self._sd_stall_s = max(self._settings.stall_s, _STALL_PICTURES / sd_fps)

    def _running(self) -> Opening:
        if self._life.opening is None:
            raise _copy(self.error) if self.error else CameraUnavailable("the camera is not open")
        return self._life.opening

    def _current(self) -> bool:
        return self._life.phase is ProcessPhase.RUNNING and not self._life.outdated

    def _order_while_running(self, order: Order) -> None:
        if self._life.phase is ProcessPhase.RUNNING:
            self._children.order(order)

    def _publish(self) -> None:
        """Copy the state of the rules to the attributes, and notify tasks that wait for a change."""
        life, error_before = self._life, self.error
        self.state, self.opening, self.error = life.state, life.opening, life.error
        self.reopens, self.restarts = life.reopens, life.restarts
        self.pid = self._children.pid
        now = (self.state, self.opening, self.error, self.reopens, self.restarts, self.pid, self.source, life.phase)
        if now == self._published:
            return
        before, self._published = self._published, now
        if self.error is not error_before:
            self._failures.changed(self.error, self._now_s())
        self._changed.set()
        self._changed = asyncio.Event()
        if now[:-1] != before[:-1]:
            self._on_change()


def _copy(error: CameraUnavailable) -> CameraUnavailable:
    """A new one to raise: its traceback is of the caller, and its code is that of a request."""
    return CameraUnavailable(error.message, detail=error.detail)


def _missing(message: str | None, detail: str | None) -> CameraUnavailable | None:
    return None if message is None else CameraUnavailable(message, detail=detail)


def _own_command(settings: CameraSettings) -> Sequence[str]:
    return sys.executable, "-m", "edge.camera.child", "--settings", settings.model_dump_json()
