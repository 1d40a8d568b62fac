"""The two ports of this room: a source inside the camera process, the camera as the daemon sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from edge.core.access_unit import Quality, StreamFormat

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from edge.core.access_unit import AccessUnit
    from edge.core.camera_controls import Offered, Values
    from edge.errors import CameraUnavailable


class Plan(NamedTuple):
    """What one encode is to be, as the settings say."""

    width: int
    height: int
    fps: int
    min_bps: int
    max_bps: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What a source is, once it is open. `format` is that of HD; SD's is known when it is encoded."""

    format: StreamFormat
    qualities: tuple[Quality, ...] = (Quality.HD,)
    offered: Mapping[str, Offered] = field(default_factory=dict)
    """The camera's controls, by name."""
    values: Values = field(default_factory=dict)
    """Those that are set, of `start`'s."""


class Source(Protocol):
    """Yields access units; lives in the camera process. All calls come from that process's main thread."""

    name: str

    def start(self, values: Values, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> Opening:
        """Open the device and begin with HD. The first access unit of each quality is a keyframe.

        `values`: controls as they were set; those that the camera does not take are left out.
        `sink` and `failed` are called from the source's own threads; they only post and never block.
        `failed` is called at most once per start, when no more access units will come, with the cause in words.
        Raises: CameraUnavailable: with the cause in words; nothing is left open.
        """

    def stop(self) -> None:
        """Release the device; no call of `sink` or `failed` after it returned. Does nothing when not started."""

    def encode_sd(self, *, on: bool, failed: Callable[[str], None] = lambda _: None) -> None:
        """Begin or end the encode of SD, where the source has it; idempotent.

        `failed` is called at most once, from the source's own thread, when SD broke; HD goes on.
        Raises: CameraUnavailable: SD cannot be encoded, with the cause in words; HD goes on.
        """

    def request_keyframe(self, quality: Quality) -> None:
        """Make the next picture an IDR access unit, where the source can (a file cannot)."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate from now on, where the source can, without a break that a viewer sees."""

    def set_controls(self, values: Values) -> None:
        """Set these controls, which were held against what `Opening` offers; None is the camera's default.

        Raises: CameraUnavailable: the camera did not take them, with the cause in words.
        """

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """One picture as a JPEG, `width` pixels wide (None: as HD); the video goes on meanwhile.

        Raises: CameraUnavailable: there is none, with the cause in words.
        """


class CameraState(StrEnum):
    """What the camera is doing. FAILED: wanted, could not be opened or stopped delivering, will be tried again."""

    CLOSED = "closed"
    OPENING = "opening"
    RUNNING = "running"
    FAILED = "failed"


class Camera(Protocol):
    """The camera as the rest of the daemon sees it. Event loop only."""

    state: CameraState
    source: str | None
    """Which kind of source it is, once its process is up."""
    opening: Opening | None
    """None unless it runs."""
    error: CameraUnavailable | None
    reopens: int
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

    def encode_sd(self, *, on: bool) -> None:
        """Say whether SD should be encoded; idempotent, and kept over restarts of the camera."""

    def request_keyframe(self, quality: Quality) -> None:
        """Pass the order on; does nothing while the camera is not running."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate, within the settings' range; kept over restarts of the camera."""

    async def set_controls(self, values: Values) -> Values:
        """Set some controls of the running camera; the values in force of all, afterwards.

        Raises: Rejected: a value that it does not take, with what it does. CameraUnavailable: it is not open, or fails.
        """

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """One picture of the running camera as a JPEG.

        Raises: CameraUnavailable: it is not open, or gives none in time.
        """

    async def run(self, ready: asyncio.Event) -> None:
        """Own the camera process until cancelled; `ready` is set when it can be asked, camera or no camera."""
