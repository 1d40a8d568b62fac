"""The daemon's camera alone: its process, its access units, and every state that it published."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from edge.camera.process import CameraProcess
from edge.camera.settings import CameraSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from edge.camera.port import CameraState
    from edge.core.access_unit import AccessUnit

GENEROUS_S = 20.0
SMALL = {"hd": {"width": 320, "height": 240}, "sd": {"width": 160, "height": 120}, "open_timeout_s": 15}


class Daemon:
    """One camera, its access units, and every state that it published."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        tap: Callable[[AccessUnit], None] = lambda _: None,
        values: dict[str, Any] | None = None,
        **settings: object,
    ) -> None:
        self.units: list[AccessUnit] = []
        self.states: list[CameraState] = []
        checked = CameraSettings.model_validate({**SMALL, **settings})
        self.sd_failures: list[str] = []
        self.camera = CameraProcess(checked, self._unit, self._changed, self._sd_failed, values=values, command=command)
        self._tap = tap
        self._notified = asyncio.Event()

    def _unit(self, unit: AccessUnit) -> None:
        self._tap(unit)
        self.units.append(unit)
        self._notified.set()

    def _sd_failed(self, why: str) -> None:
        self.sd_failures.append(why)
        self._notified.set()

    def _changed(self) -> None:
        self.states.append(self.camera.state)
        self._notified.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(GENEROUS_S):
            while not condition():
                self._notified.clear()
                await self._notified.wait()

    async def more_units(self, count: int = 3) -> None:
        enough = len(self.units) + count
        await self.until(lambda: len(self.units) >= enough)


@asynccontextmanager
async def running(
    command: Sequence[str] | None = None,
    tap: Callable[[AccessUnit], None] = lambda _: None,
    values: dict[str, Any] | None = None,
    **settings: object,
) -> AsyncIterator[Daemon]:
    """Run the camera until the context ends. `tap` gets each access unit first."""
    daemon = Daemon(command, tap, values, **settings)
    ready = asyncio.Event()
    task = asyncio.create_task(daemon.camera.run(ready), name="camera")
    try:
        await daemon.until(lambda: ready.is_set() and daemon.camera.pid is not None)
        yield daemon
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
