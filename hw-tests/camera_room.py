"""The camera process alone, as the daemon drives it, with the time at which each access unit arrived."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edge.camera.process import CameraProcess
from edge.core.access_unit import AccessUnit, Quality

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from edge.camera.port import CameraState
    from edge.camera.settings import CameraSettings

PATIENCE_S = 60.0
"""Longer than anything may take; what it may take is told by the bounds."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An access unit without its bytes, of which a minute would fill a small board. Times are CLOCK_MONOTONIC."""

    at_ns: int
    captured_ns: int
    size_bytes: int
    keyframe: bool

    @property
    def late_ms(self) -> float:
        return (self.at_ns - self.captured_ns) / 1e6


class CameraRoom:
    """One camera process. Event loop only."""

    def __init__(self, settings: CameraSettings) -> None:
        self.arrived: dict[Quality, list[Arrival]] = {quality: [] for quality in Quality}
        self.camera = CameraProcess(settings, self._unit, self._changed)
        self.ready_s = 0.0
        self.open_s = 0.0
        self._news = asyncio.Event()

    @property
    def encoder(self) -> str | None:
        return self.camera.opening.format.encoder if self.camera.opening else None

    async def open(self) -> None:
        """Wait for the process, then for the camera, and keep how long either took."""
        begun_s = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while self.camera.source is None:
                await asyncio.sleep(0.02)
        self.ready_s = time.monotonic() - begun_s
        begun_s = time.monotonic()
        self.camera.want(wanted=True)
        await self.camera.opened()
        self.open_s = time.monotonic() - begun_s

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def next(self, quality: Quality = Quality.HD, true: Callable[[Arrival], bool] = lambda _: True) -> Arrival:
        """The first one from now on for which it is true."""
        arrived = self.arrived[quality]
        at = len(arrived)
        await self.until(lambda: any(true(arrival) for arrival in arrived[at:]))
        return next(arrival for arrival in arrived[at:] if true(arrival))

    async def record(self, seconds: float, *qualities: Quality) -> list[list[Arrival]]:
        """What arrives of each quality in so many seconds. Fails where the camera did not run all the time."""
        asked = [self.arrived[quality] for quality in qualities or (Quality.HD,)]
        begun, before = [len(arrived) for arrived in asked], self._fate
        await asyncio.sleep(seconds)
        assert before == self._fate, f"{before} became {self._fate}: {self.camera.error}"
        return [arrived[at:] for arrived, at in zip(asked, begun, strict=True)]

    @property
    def _fate(self) -> tuple[CameraState, int, int]:
        return self.camera.state, self.camera.reopens, self.camera.restarts

    def _unit(self, unit: AccessUnit) -> None:
        arrival = Arrival(time.monotonic_ns(), unit.captured_ns, len(unit.payload), unit.keyframe)
        self.arrived[unit.quality].append(arrival)
        self._news.set()

    def _changed(self) -> None:
        self._news.set()


@asynccontextmanager
async def open_camera(settings: CameraSettings) -> AsyncIterator[CameraRoom]:
    """A camera that runs; its process ends with the context."""
    room = CameraRoom(settings)
    running = asyncio.create_task(room.camera.run(asyncio.Event()), name="camera")
    try:
        await room.open()
        yield room
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def frame_rate(arrivals: Sequence[Arrival]) -> float:
    """By the capture clock, which does not care how busy the receiving process is."""
    assert len(arrivals) > 1, f"{len(arrivals)} access units came"
    return (len(arrivals) - 1) * 1e9 / (arrivals[-1].captured_ns - arrivals[0].captured_ns)


def missed(arrivals: Sequence[Arrival], fps: float) -> int:
    """Pictures that would have filled the gaps between those that came. Fails where they came out of order."""
    steps_s = [(later.captured_ns - earlier.captured_ns) / 1e9 for earlier, later in pairwise(arrivals)]
    assert min(steps_s) > 0, "out of order"
    return sum(max(0, round(step_s * fps) - 1) for step_s in steps_s)


def bitrate_bps(arrivals: Sequence[Arrival]) -> float:
    # Of the first one it is not known which time it took.
    return (
        sum(arrival.size_bytes for arrival in arrivals[1:]) * 8e9 / (arrivals[-1].captured_ns - arrivals[0].captured_ns)
    )
