"""The two ports of this room: a source inside the camera process, the camera as the daemon sees it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit, Quality, StreamFormat
    from edge.errors import CameraUnavailable


class Source(Protocol):
    """Yields access units; lives in the camera process. All calls come from that process's main thread."""

    def start(self, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> StreamFormat:
        """Open the device and begin. The first access unit is a keyframe.

        `sink` and `failed` are called from the source's own thread; they only post and never block.
        `failed` is called at most once per start, when no more access units will come, with the cause in words.
        Raises: CameraUnavailable: with the cause in words; nothing is left open.
        """

    def stop(self) -> None:
        """Release the device; no call of `sink` or `failed` after it returned. Does nothing when not started."""

    def request_keyframe(self, quality: Quality) -> None:
        """Make the next picture an IDR access unit, where the source can (a file cannot)."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate from now on, where the source can, without a break that a viewer sees."""


class CameraState(StrEnum):
    """What the camera is doing. FAILED: wanted, could not be opened or stopped delivering, will be tried again."""

    CLOSED = "closed"
    OPENING = "opening"
    RUNNING = "running"
    FAILED = "failed"


class Camera(Protocol):
    """The camera as the rest of the daemon sees it. Event loop only."""

    state: CameraState
    format: StreamFormat | None
    error: CameraUnavailable | None
    restarts: int
    pid: int | None

    def want(self, wanted: bool) -> None:
        """Say whether the camera should be open; idempotent. It follows in `run`."""

    async def opened(self) -> StreamFormat:
        """Wait until the camera runs.

        Raises: CameraUnavailable: it cannot be opened now, with the cause in words; or it is not wanted.
        Has a deadline of its own (`open_timeout_s`).
        """

    async def closed(self) -> None:
        """Wait until the source is released, after `want(False)`; returns at once while it is wanted.

        Bounded: a source that does not let go is killed with its process.
        """

    def request_keyframe(self, quality: Quality) -> None:
        """Pass the order on; does nothing while the camera is not running."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Pass the order on; does nothing while the camera is not running."""

    async def run(self, ready: asyncio.Event) -> None:
        """Own the camera process until cancelled; `ready` is set when it can be asked, camera or no camera."""
