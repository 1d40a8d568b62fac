"""The camera process alone, controlled as by the daemon, with the arrival time of each access unit."""

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

TIMEOUT_S = 60.0
"""Longer than any step may take. The bounds decide what is too slow."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An access unit without its payload: a minute of payloads would fill a small board. Times are CLOCK_MONOTONIC."""

    at_ns: int
    captured_ns: int
    size_bytes: int
    keyframe: bool

    @property
    def latency_ms(self) -> float:
        return (self.at_ns - self.captured_ns) / 1e6


class CameraRecorder:
    """One camera process and its arrivals. Use from the event loop only."""

    def __init__(self, settings: CameraSettings) -> None:
        self.arrived: dict[Quality, list[Arrival]] = {quality: [] for quality in Quality}
        self.camera = CameraProcess(settings, self._unit, self._on_state)
        self.ready_s = 0.0
        self.open_s = 0.0
        self._changed_event = asyncio.Event()

    @property
    def encoder(self) -> str | None:
        return self.camera.opening.format.encoder if self.camera.opening else None

    async def open(self) -> None:
        """Wait for the process, then for the camera. Sets `ready_s` and `open_s` to the time that each took."""
        started_s = time.monotonic()
        async with asyncio.timeout(TIMEOUT_S):
            while self.camera.source is None:
                await asyncio.sleep(0.02)
        self.ready_s = time.monotonic() - started_s
        started_s = time.monotonic()
        self.camera.want(wanted=True)
        await self.camera.opened()
        self.open_s = time.monotonic() - started_s

    async def wait_until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed_event.clear()
                await self._changed_event.wait()

    async def next(
        self, quality: Quality = Quality.HD, condition: Callable[[Arrival], bool] = lambda _: True
    ) -> Arrival:
        """The first arrival from now on that meets the condition."""
        arrived = self.arrived[quality]
        at = len(arrived)
        await self.wait_until(lambda: any(condition(arrival) for arrival in arrived[at:]))
        return next(arrival for arrival in arrived[at:] if condition(arrival))

    async def record(self, seconds: float, *qualities: Quality) -> list[list[Arrival]]:
        """The arrivals of each quality in `seconds`. Fails if the camera was restarted or changed its state."""
        recorded = [self.arrived[quality] for quality in qualities or (Quality.HD,)]
        starts, before = [len(arrived) for arrived in recorded], self._condition
        await asyncio.sleep(seconds)
        assert before == self._condition, f"{before} changed to {self._condition}: {self.camera.error}"
        return [arrived[at:] for arrived, at in zip(recorded, starts, strict=True)]

    @property
    def _condition(self) -> tuple[CameraState, int, int]:
        return self.camera.state, self.camera.reopens, self.camera.restarts

    def _unit(self, unit: AccessUnit) -> None:
        arrival = Arrival(time.monotonic_ns(), unit.captured_ns, len(unit.payload), unit.keyframe)
        self.arrived[unit.quality].append(arrival)
        self._changed_event.set()

    def _on_state(self) -> None:
        self._changed_event.set()


@asynccontextmanager
async def open_camera(settings: CameraSettings) -> AsyncIterator[CameraRecorder]:
    """A running camera. Its process ends with the context."""
    recorder = CameraRecorder(settings)
    running = asyncio.create_task(recorder.camera.run(asyncio.Event()), name="camera")
    try:
        await recorder.open()
        yield recorder
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def frame_rate(arrivals: Sequence[Arrival]) -> float:
    """Measured by the capture clock, which does not depend on the load of the receiving process."""
    assert len(arrivals) > 1, f"{len(arrivals)} access units arrived"
    return (len(arrivals) - 1) * 1e9 / (arrivals[-1].captured_ns - arrivals[0].captured_ns)


def missed(arrivals: Sequence[Arrival], fps: float) -> int:
    """The number of pictures missing between the arrivals. Fails if the arrivals are out of order."""
    steps_s = [(later.captured_ns - earlier.captured_ns) / 1e9 for earlier, later in pairwise(arrivals)]
    assert min(steps_s) > 0, "out of order"
    return sum(max(0, round(step_s * fps) - 1) for step_s in steps_s)


def bitrate_bps(arrivals: Sequence[Arrival]) -> float:
    # The duration of the first one is unknown.
    return (
        sum(arrival.size_bytes for arrival in arrivals[1:]) * 8e9 / (arrivals[-1].captured_ns - arrivals[0].captured_ns)
    )
