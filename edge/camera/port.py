"""The port that every source implements, inside the camera process."""

from __future__ import annotations

# pydantic reads the annotations of Opening at run time (wire.py).
from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from edge.core.access_unit import Quality, StreamFormat
from edge.core.camera_controls import ControlValues, Offered  # noqa: TC001
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit

    Sink: TypeAlias = Callable[[AccessUnit], None]
    OnFailed: TypeAlias = Callable[[str], None]


class Plan(NamedTuple):
    """What one encode should produce, from the settings."""

    width: int
    height: int
    fps: int
    min_bps: int
    max_bps: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What an open source delivers. `format` is that of HD."""

    format: StreamFormat
    qualities: tuple[Quality, ...] = (Quality.HD,)
    offered: Mapping[str, Offered] = field(default_factory=dict)
    """The camera's controls, by name."""
    values: ControlValues = field(default_factory=dict)
    """The controls given to `start` that are in force."""


class CameraMissing(CameraUnavailable):
    """There is no camera, or no software for it. Viewers only read that it is not connected."""

    def __init__(self, detail: str) -> None:
        super().__init__("The camera is not connected", detail=detail)


class Source(Protocol):
    """Yields access units. All methods are called from the camera process's main thread.

    `sink` and `failed` callbacks are called from the source's own threads. They only post, and never block.
    """

    name: str

    def probe(self) -> None:
        """Check that the device is there, without opening it. Called only while the source is closed.

        Raises: CameraUnavailable: it is not there; `start` would fail.
        """

    def start(self, values: ControlValues, sink: Sink, failed: OnFailed) -> Opening:
        """Open the device and encode HD. The first access unit of each quality is a keyframe.

        `values`: the controls to set. Those that the camera does not accept are left out.
        `failed` is called at most once per start, with the cause, when no more access units will follow.
        Raises: CameraUnavailable: nothing is left open.
        """

    def stop(self) -> None:
        """Close the device. `sink` and `failed` are not called afterwards. Does nothing while the source is closed."""

    def encode_sd(self, *, on: bool, failed: OnFailed = lambda _: None) -> None:
        """Start or stop the encode of SD; idempotent.

        `failed` is called at most once, with the cause, when SD fails later; HD goes on.
        Raises: CameraUnavailable: SD cannot be encoded; HD goes on.
        """

    def request_keyframe(self, quality: Quality) -> None:
        """Encode the next picture as an IDR access unit. Does nothing if the source cannot (a recording)."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate from now on, without a visible break. Does nothing if the source cannot."""

    def set_controls(self, values: ControlValues) -> None:
        """Set these controls, each within what `Opening` offers. None is the camera's default.

        Raises: CameraUnavailable: the camera rejected them; the controls in force before stay in force.
        """

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """One picture as a JPEG, `width` pixels wide (None: as wide as HD). The video goes on.

        Raises: CameraUnavailable: no picture arrived in time.
        """


class CameraState(StrEnum):
    """What the camera does. FAILED: it is missing, could not be opened, or stopped delivering; it is tried again."""

    CLOSED = "closed"
    OPENING = "opening"
    RUNNING = "running"
    FAILED = "failed"
