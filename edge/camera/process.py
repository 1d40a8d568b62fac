"""The camera as the daemon sees it: a process of its own, kept warm, watched, and started again."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import random
import sys
import time
from typing import TYPE_CHECKING

from edge.camera.child_link import ChildLink
from edge.camera.lifecycle import Effect, Lifecycle, Phase
from edge.camera.port import CameraState
from edge.camera.wire import (
    BadWire,
    Closed,
    Done,
    Dropped,
    EncodeSd,
    Failed,
    MakeKeyframe,
    Opened,
    Ready,
    SdFailed,
    SetBitrate,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
)
from edge.core.access_unit import AccessUnit, Quality
from edge.core.camera_controls import check, in_force, still_taken
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge.camera.lifecycle import Remedy
    from edge.camera.port import Opening
    from edge.camera.settings import CameraSettings
    from edge.camera.wire import Order, Report
    from edge.core.access_unit import StreamFormat
    from edge.core.camera_controls import Offered, Values

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 4.0
_HURRY_S = 1.0
"""Callers void the back-off at most so often: each try may cost a new process."""
_STALL_PICTURES = 3
"""At a slow frame rate a stall is told by as many pictures that did not come."""


class CameraProcess:
    """The `Camera` port over a child process. Event loop only; both callbacks are called from the loop.

    `on_unit` gets every access unit while the camera runs. `on_change` is called after `state`, `source`, `opening`,
    `error`, `sd_error`, `reopens`, `restarts` or `pid` changed. An error that either raises ends `run` with it.
    `dropped` counts the access units that the process dropped because the daemon was slow to read.
    `values`: the controls as they were set before. `on_sd_failed`: each time that SD, which was asked for, is not
    encoded, with the reason; it has to be asked for again.
    """

    def __init__(
        self,
        settings: CameraSettings,
        on_unit: Callable[[AccessUnit], None],
        on_change: Callable[[], None],
        on_sd_failed: Callable[[str], None] = lambda _: None,
        *,
        values: Values | None = None,
        command: Sequence[str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.state = CameraState.CLOSED
        self.source: str | None = None
        self._told_source: str | None = None
        self.opening: Opening | None = None
        self.error: CameraUnavailable | None = None
        self.sd_error: str | None = None
        self.reopens = 0
        self.restarts = 0
        self.pid: int | None = None
        self.dropped = 0
        self._settings = settings
        self._on_unit = on_unit
        self._on_change = on_change
        self._command = command
        self._untried = set(Quality)
        self._now_s = now_s
        self._life = Lifecycle(settings.open_timeout_s, settings.stall_s, draw)
        self._values: Values = dict(values or {})
        self._on_sd_failed = on_sd_failed
        self._sd_wanted = False
        self._sd_tried = False
        self._sd_s = 0.0
        self._hurried_s = float("-inf")
        self._bitrates: dict[Quality, int] = {}
        self._tickets = itertools.count()
        self._asked: dict[int, asyncio.Future[Done]] = {}
        self._phase = self._life.phase
        self._link: ChildLink | None = None
        self._gone: ChildLink | None = None
        self._bug: Exception | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    def want(self, wanted: bool) -> None:
        self._life.want(self._now_s(), wanted=wanted)
        self._wake.set()
        self._tell()

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """What it encodes; nothing while it is not open."""
        return self.opening.qualities if self.opening else ()

    @property
    def offered(self) -> Mapping[str, Offered]:
        """The controls of the camera; none while it is not open."""
        return self.opening.offered if self.opening else {}

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        """What the settings allow, in bits a second."""
        plan = self._settings.hd if quality is Quality.HD else self._settings.sd
        return plan.min_bps, plan.max_bps

    def retune(self, settings: CameraSettings) -> None:
        """Other bitrate ranges: an open camera is opened again with them, and who watches sees a short pause."""
        before, self._settings = self._settings, settings
        if (before.hd, before.sd) == (settings.hd, settings.sd):
            return
        self._untried = set(Quality)
        self._life.renew(self._now_s())
        self._wake.set()

    async def picture(self, *, sd: bool) -> None:
        """Wait until a picture was made with the present bitrate ranges; `sd`: one of SD too, which is encoded for it.

        Where the source has no SD, that cannot be tried. Raises: CameraUnavailable: SD cannot be encoded.
        """
        self._ask_sd(viewers=self._sd_wanted, tried=sd)
        try:
            while Quality.HD in self._untried or (sd and Quality.SD in self._untried and self._has_sd):
                if sd and not self._sd_tried:
                    raise CameraUnavailable(f"SD cannot be encoded: {self.sd_error}")
                await self._changed.wait()
        finally:
            self._ask_sd(viewers=self._sd_wanted, tried=False)

    @property
    def recovery(self) -> tuple[Remedy | None, str, int]:
        """What was last tried to bring the camera back, why, and how often it stalled."""
        return self._life.remedy, self._life.why, self._life.stalls

    async def opened(self) -> StreamFormat:
        life = self._life
        if self._now_s() - self._hurried_s >= _HURRY_S:
            self._hurried_s = self._now_s()
            life.hurry(self._hurried_s)
            self._wake.set()
        failures, restarts = life.failures, life.restarts
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                while life.opening is None:
                    if not life.wanted:
                        raise CameraUnavailable("the camera is not wanted")
                    # One restart is waited through, since a crash heals by itself; what the source says is final.
                    if life.error and (life.failures > failures or life.restarts > restarts + 1):
                        raise CameraUnavailable(life.error.message)
                    await self._changed.wait()
        except TimeoutError:
            late = f"the camera did not open within {self._settings.open_timeout_s:g} s"
            raise CameraUnavailable(life.error.message if life.error else late) from None
        return life.opening.format

    async def closed(self) -> None:
        while not self._life.wanted and self._life.phase in {Phase.OPENING, Phase.RUNNING, Phase.CLOSING}:
            await self._changed.wait()

    def request_keyframe(self, quality: Quality) -> None:
        self._order_while_running(MakeKeyframe(quality))

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        lowest, highest = self.bitrate_range(quality)
        self._bitrates[quality] = bitrate_bps
        self._order_while_running(SetBitrate(quality, min(highest, max(lowest, bitrate_bps))))

    def encode_sd(self, *, on: bool) -> None:
        self._ask_sd(viewers=on, tried=self._sd_tried)

    async def set_controls(self, values: Values) -> Values:
        opening = self._running()
        check(values, opening.offered)
        await self._ask(lambda ticket: SetControls(ticket, values))
        self._values = still_taken({**self._values, **values}, opening.offered)
        self._follow_frame_rate(opening)
        return in_force(self._values, opening.offered)

    @property
    def values(self) -> Values:
        """The controls that are set, as far as the camera takes them."""
        return still_taken(self._values, self.opening.offered) if self.opening else dict(self._values)

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        self._running()
        done = await self._ask(lambda ticket: TakeSnapshot(ticket, width, jpeg_quality))
        return base64.b64decode(done.base64 or "")

    async def run(self, ready: asyncio.Event) -> None:
        ready.set()
        try:
            while True:
                self._wake.clear()
                await self._follow()
                await self._sleep()
        finally:
            link, self._link = self._link or self._gone, None
            self._life.want(self._now_s(), wanted=False)
            self._life.lost("the daemon stops", self._now_s())
            self._tell()
            if link is not None:
                await link.end()

    async def _follow(self) -> None:
        """Do what the rules say, until they want nothing more for now."""
        if self._bug is not None:
            raise self._bug
        if self._gone is not None:
            await self._gone.kill()
            log.warning("camera process %d ended, status %s", self._gone.pid, self._gone.exit_status)
            self._gone = None
        while (effect := self._life.step(self._now_s())) is not None:
            await self._do(effect)
            self._tell()

    async def _do(self, effect: Effect) -> None:
        if effect is Effect.SPAWN:
            # Before the await: the first message may be here before it returns.
            link = self._link = ChildLink(self._hear, self._lost)
            try:
                await link.spawn(self._command or _own_command(self._settings))
            except OSError as exc:
                self._link = None
                self._life.lost(f"the camera process cannot be started: {exc}", self._now_s())
        elif self._link is not None:
            if effect is Effect.START:
                self._link.order(Start(self._values, self._settings.model_dump(mode="json")))
            elif effect is Effect.STOP:
                self._link.order(Stop())
            else:
                self._gone, self._link = self._link, None
                log.warning("killing the camera process: %s", self._life.error)
                self._tell()
                await self._gone.kill()
                self._gone = None

    async def _sleep(self) -> None:
        due_s = self._life.due_s
        try:
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._now_s())):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _hear(self, link: ChildLink, message: AccessUnit | Order | Report) -> None:
        if link is not self._link:
            return
        now_s = self._now_s()
        if isinstance(message, AccessUnit):
            self._hear_unit(message, now_s)
            return
        self._note(message, now_s)
        self._wake.set()
        self._tell()

    def _hear_unit(self, unit: AccessUnit, now_s: float) -> None:
        if unit.quality is Quality.SD:
            self._sd_s = now_s
            self.sd_error = None
            running = self._life.phase is Phase.RUNNING
        else:
            running = self._life.unit(now_s)
            if running and self._sd_due and now_s - self._sd_s > self._life.stall_s:
                self._order_while_running(EncodeSd(on=False))
                self._sd_failed(f"SD delivered no picture for {self._life.stall_s:g} s")
        if running and unit.quality in self._untried and not self._life.stale:
            self._untried.discard(unit.quality)
            self._announce()
        if running:
            self._on_unit(unit)

    @property
    def _has_sd(self) -> bool:
        return self._life.opening is None or Quality.SD in self._life.opening.qualities

    @property
    def _sd_due(self) -> bool:
        return self._sd_wanted or (self._sd_tried and self._has_sd)

    def _ask_sd(self, *, viewers: bool, tried: bool) -> None:
        before = self._sd_due
        self._sd_wanted, self._sd_tried = viewers, tried
        if (on := self._sd_due) != before:
            self._sd_s = self._now_s()
            self._order_while_running(EncodeSd(on))

    def _sd_failed(self, said: str) -> None:
        log.warning("SD cannot be encoded: %s", said)
        self.sd_error = said
        # What is open with other ranges tells nothing of those that are tried.
        self._sd_wanted, self._sd_tried = False, self._sd_tried and self._life.stale
        self._announce()
        self._on_sd_failed(said)

    def _follow_frame_rate(self, opening: Opening) -> None:
        fps = still_taken(self._values, opening.offered).get("fps") or opening.format.fps
        self._life.stall_s = max(self._settings.stall_s, _STALL_PICTURES / fps)

    def _note(self, report: Order | Report, now_s: float) -> None:
        match report:
            case Ready(source):
                self.source = source
                self._life.ready(now_s)
            case Opened(opening):
                self._life.opened(opening, now_s)
                self._follow_frame_rate(opening)
                self._resume()
            case Closed():
                self._life.closed(now_s)
            case Failed(said):
                log.warning("the camera failed: %s", said)
                self._life.failed(said, now_s)
            case SdFailed(said):
                self._sd_failed(said)
            case Done(ticket):
                if (asked := self._asked.pop(ticket, None)) is not None and not asked.done():
                    asked.set_result(report)
            case Dropped(count):
                self.dropped += count
            case _:
                raise BadWire("an order from the camera process")

    def _lost(self, link: ChildLink, exc: Exception | None) -> None:
        if exc is not None and not isinstance(exc, OSError):
            self._bug = exc
        if link is self._link:
            self._gone, self._link = link, None
            for ticket, asked in self._asked.items():
                if not asked.done():
                    asked.set_result(Done(ticket, error="the camera process ended unexpectedly"))
            self._life.lost("the camera process ended unexpectedly", self._now_s())
            self._tell()
        self._wake.set()

    def _resume(self) -> None:
        """What was asked of the camera before it was opened again."""
        if self._sd_due:
            self._sd_s = self._now_s()
            self._order_while_running(EncodeSd(on=True))
        for quality, bitrate_bps in self._bitrates.items():
            self.set_bitrate(quality, bitrate_bps)

    def _running(self) -> Opening:
        if self._life.opening is None:
            raise CameraUnavailable(self.error.message if self.error else "the camera is not open")
        return self._life.opening

    async def _ask(self, order: Callable[[int], Order]) -> Done:
        """Give an order and wait for its answer.

        Raises: CameraUnavailable: it did not take effect, or no answer came in time.
        """
        ticket = next(self._tickets)
        asked: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._asked[ticket] = asked
        try:
            self._order_while_running(order(ticket))
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                done = await asked
        except TimeoutError:
            raise CameraUnavailable("the camera did not answer in time") from None
        finally:
            self._asked.pop(ticket, None)
        if done.error is not None:
            raise CameraUnavailable(done.error)
        return done

    def _order_while_running(self, order: Order) -> None:
        if self._life.phase is Phase.RUNNING and self._link is not None:
            self._link.order(order)

    def _tell(self) -> None:
        life = self._life
        pid = self._link.pid if self._link is not None else None
        if life.phase is not self._phase:
            self._phase = life.phase
            self._announce()
        now = (life.state, life.opening, life.error, life.reopens, life.restarts, pid)
        before = (self.state, self.opening, self.error, self.reopens, self.restarts, self.pid)
        if (now, self.source) == (before, self._told_source):
            return
        self._told_source = self.source
        self.state, self.opening, self.error, self.reopens, self.restarts, self.pid = now
        self._announce()
        self._on_change()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _own_command(settings: CameraSettings) -> Sequence[str]:
    return sys.executable, "-m", "edge.camera.child", "--settings", settings.model_dump_json()
