"""The settings of the camera."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads the annotations at run time
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edge.contract.section import Rule, Section
from edge.core.annexb import level_for

_STALL_FRAMES = 3
"""Fewer missing frames than these may just be a slow frame rate."""

Width = Annotated[int, Field(ge=160, le=1920, multiple_of=2, description="Width of the picture in pixels; even.")]
Height = Annotated[int, Field(ge=120, le=1920, multiple_of=2, description="Height of the picture in pixels; even.")]
MinBps = Annotated[
    int, Field(ge=50_000, le=20_000_000, description="Lowest bitrate of the encoder, in bits per second.")
]
MaxBps = Annotated[
    int, Field(ge=100_000, le=20_000_000, description="Highest bitrate of the encoder, in bits per second.")
]


def _bitrates_in_order(quality: QualitySettings) -> tuple[str, str] | None:
    return ("min_bps", "greater than max_bps") if quality.min_bps > quality.max_bps else None


def _has_a_level(quality: QualitySettings) -> tuple[str, str] | None:
    try:
        level_for(*quality.stream)
    except ValueError as exc:
        return "", str(exc)
    return None


class QualitySettings(Section):
    """One encoding of the picture."""

    rules: ClassVar[tuple[Rule, ...]] = (_bitrates_in_order, _has_a_level)

    width: Width
    height: Height
    fps: Annotated[
        int,
        Field(ge=1, le=60, description="Frames per second. A recording with timestamps keeps its own rate."),
    ] = 30
    min_bps: MinBps = 200_000
    max_bps: MaxBps

    @property
    def stream(self) -> tuple[int, int, int, int]:
        """Width, height, fps and max_bps: what the H.264 level depends on."""
        return self.width, self.height, self.fps, self.max_bps


class HdSettings(QualitySettings):
    """`[camera.hd]`. A Raspberry Pi Zero 2 W can encode the default together with SD."""

    width: Width = 1280
    height: Height = 720
    max_bps: MaxBps = 2_000_000


class SdSettings(QualitySettings):
    """`[camera.sd]`: for slow networks, encoded only while somebody watches it."""

    width: Width = 640
    height: Height = 360
    min_bps: MinBps = 100_000
    max_bps: MaxBps = 600_000


def _file_has_a_path(camera: CameraSettings) -> tuple[str, str] | None:
    return ("path", 'missing; source = "file" needs it') if camera.source == "file" and camera.path is None else None


def _sd_within_hd(camera: CameraSettings) -> tuple[str, str] | None:
    if camera.sd.width > camera.hd.width or camera.sd.height > camera.hd.height:
        return "sd", "larger than camera.hd"
    try:
        higher = level_for(*camera.sd.stream) > level_for(*camera.hd.stream)
    except ValueError:  # a fault of that quality, which reports it
        return None
    return ("sd", "needs a higher H.264 level than camera.hd: lower its size, fps or max_bps") if higher else None


def _sd_fps_divides(camera: CameraSettings) -> tuple[str, str] | None:
    fps = camera.hd.fps
    return ("sd.fps", f"must be a divisor of camera.hd.fps ({fps})") if fps % camera.sd.fps else None


def _stall_longer_than_frames(camera: CameraSettings) -> tuple[str, str] | None:
    # `camera.set` can lower fps to one while the camera runs; the rule is about the usual rate.
    fps = camera.hd.fps
    too_short = camera.stall_s * fps < _STALL_FRAMES
    return ("stall_s", f"shorter than {_STALL_FRAMES} frames at {fps} fps") if too_short else None


class CameraSettings(Section):
    """`[camera]`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _file_has_a_path,
        _sd_within_hd,
        _sd_fps_divides,
        _stall_longer_than_frames,
    )

    source: Annotated[
        Literal["auto", "picamera2", "synthetic", "file"],
        Field(
            description="Source of the picture: the camera, a drawn test picture, or a recording. auto: the camera on "
            "a Raspberry Pi and wherever picamera2 finds one, else the test picture."
        ),
    ] = "auto"
    number: Annotated[int, Field(ge=0, le=7, description="Number of the camera, if there are several.")] = 0
    path: Annotated[
        Path | None,
        Field(
            description="The recording for source = file: H.264 without B-frames, as .h264, .ts or .mp4. It is looped."
        ),
    ] = None
    hd: HdSettings = HdSettings()
    sd: SdSettings = SdSettings()
    keyframe_interval_s: Annotated[
        float,
        Field(ge=0.5, le=60, description="Longest time between keyframes. Viewers also get one on request."),
    ] = 10
    open_timeout_s: Annotated[
        float,
        Field(ge=1, le=60, description="Time limit for opening the camera."),
    ] = 5
    stall_s: Annotated[
        float,
        Field(ge=0.5, le=60, description="After this time without a frame the camera is opened again."),
    ] = 2
    idle_stop_s: Annotated[
        float,
        Field(ge=0, le=3600, description="How long the camera stays open after the last viewer has left."),
    ] = 30
