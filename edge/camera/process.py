"""The camera as the daemon sees it: a process of its own, kept warm, watched, and started again."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from typing import TYPE_CHECKING

from edge.camera.lifecycle import Effect, Lifecycle, Phase
from edge.camera.link import Link
from edge.camera.port import CameraState
from edge.camera.wire import (
    BadWire,
    Closed,
    Dropped,
    Failed,
    MakeKeyframe,
    Opened,
    Ready,
    SetBitrate,
    Start,
    Stop,
)
from edge.core.access_unit import AccessUnit
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.camera.settings import CameraSettings
    from edge.camera.wire import Order, Report
    from edge.core.access_unit import Quality, StreamFormat

log = logging.getLogger(__name__)


class CameraProcess:
    """The `Camera` port over a child process. Event loop only; both callbacks are called from the loop.

    `on_unit` gets every access unit while the camera runs. `on_change` is called after `state`, `format`, `error`,
    `restarts` or `pid` changed. An error that either raises ends `run` with it.
    `dropped` counts the access units that the process dropped because the daemon was slow to read.
    """

    def __init__(
        self,
        settings: CameraSettings,
        on_unit: Callable[[AccessUnit], None],
        on_change: Callable[[], None],
        *,
        command: Sequence[str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.state = CameraState.CLOSED
        self.format: StreamFormat | None = None
        self.error: CameraUnavailable | None = None
        self.restarts = 0
        self.pid: int | None = None
        self.dropped = 0
        self._settings = settings
        self._on_unit = on_unit
        self._on_change = on_change
        own = (sys.executable, "-m", "edge.camera.child", "--settings", settings.model_dump_json())
        self._command = own if command is None else command
        self._now_s = now_s
        self._life = Lifecycle(settings.open_timeout_s, settings.stall_s, draw)
        self._phase = self._life.phase
        self._link: Link | None = None
        self._gone: Link | None = None
        self._bug: Exception | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    def want(self, wanted: bool) -> None:
        self._life.want(self._now_s(), wanted=wanted)
        self._wake.set()
        self._tell()

    async def opened(self) -> StreamFormat:
        life = self._life
        life.hurry(self._now_s())
        self._wake.set()
        failures, restarts = life.failures, life.restarts
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                while life.format is None:
                    if not life.wanted:
                        raise CameraUnavailable("the camera is not wanted")
                    # One restart is waited through, since a crash heals by itself; what the source says is final.
                    if life.error and (life.failures > failures or life.restarts > restarts + 1):
                        raise CameraUnavailable(life.error.message)
                    await self._changed.wait()
        except TimeoutError:
            late = f"the camera did not open within {self._settings.open_timeout_s:g} s"
            raise CameraUnavailable(life.error.message if life.error else late) from None
        return life.format

    async def closed(self) -> None:
        while not self._life.wanted and self._life.phase in {Phase.OPENING, Phase.RUNNING, Phase.CLOSING}:
            await self._changed.wait()

    def request_keyframe(self, quality: Quality) -> None:
        self._order_while_running(MakeKeyframe(quality))

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        self._order_while_running(SetBitrate(quality, bitrate_bps))

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
            link = self._link = Link(self._hear, self._lost)
            try:
                await link.spawn(self._command)
            except OSError as exc:
                self._link = None
                self._life.lost(f"the camera process cannot be started: {exc}", self._now_s())
        elif self._link is not None:
            if effect is Effect.START:
                self._link.order(Start())
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

    def _hear(self, link: Link, message: AccessUnit | Order | Report) -> None:
        if link is not self._link:
            return
        now_s = self._now_s()
        match message:
            case AccessUnit():
                if self._life.unit(now_s):
                    self._on_unit(message)
                return
            case Ready():
                self._life.ready(now_s)
            case Opened(stream_format):
                self._life.opened(stream_format, now_s)
            case Closed():
                self._life.closed(now_s)
            case Failed(said):
                log.warning("the camera failed: %s", said)
                self._life.failed(said, now_s)
            case Dropped(count):
                self.dropped += count
            case _:
                raise BadWire("an order from the camera process")
        self._wake.set()
        self._tell()

    def _lost(self, link: Link, exc: Exception | None) -> None:
        if exc is not None and not isinstance(exc, OSError):
            self._bug = exc
        if link is self._link:
            self._gone, self._link = link, None
            self._life.lost("the camera process ended unexpectedly", self._now_s())
            self._tell()
        self._wake.set()

    def _order_while_running(self, order: Order) -> None:
        if self._life.phase is Phase.RUNNING and self._link is not None:
            self._link.order(order)

    def _tell(self) -> None:
        life = self._life
        pid = self._link.pid if self._link is not None else None
        if life.phase is not self._phase:
            self._phase = life.phase
            self._announce()
        now = (life.state, life.format, life.error, life.restarts, pid)
        if now == (self.state, self.format, self.error, self.restarts, self.pid):
            return
        self.state, self.format, self.error, self.restarts, self.pid = now
        self._announce()
        self._on_change()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
