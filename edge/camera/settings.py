"""The slice of the settings that the camera takes."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads the annotations at run time
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.core.annexb import level_for

_STALL_PICTURES = 3
"""A stall is told from a slow frame rate by as many pictures that did not come."""


Width = Annotated[int, Field(ge=160, le=1920, multiple_of=2, description="Of a picture, in pixels; even.")]
Height = Annotated[int, Field(ge=120, le=1920, multiple_of=2, description="Of a picture, in pixels; even.")]
MinBps = Annotated[int, Field(ge=50_000, le=20_000_000, description="The encoder never aims lower, in bits a second.")]
MaxBps = Annotated[
    int, Field(ge=100_000, le=20_000_000, description="The encoder never aims higher, in bits a second.")
]


class QualitySettings(BaseModel):
    """One encode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width
    height: Height
    fps: Annotated[
        int,
        Field(ge=1, le=60, description="Pictures a second; a recording with timestamps of its own keeps those."),
    ] = 30
    min_bps: MinBps = 200_000
    max_bps: MaxBps

    @property
    def stream(self) -> tuple[int, int, int, int]:
        """What its H.264 level depends on."""
        return self.width, self.height, self.fps, self.max_bps

    @model_validator(mode="after")
    def _can_be_encoded(self) -> Self:
        if self.min_bps > self.max_bps:
            raise ValueError("min_bps is over max_bps")
        level_for(*self.stream)
        return self


class HdSettings(QualitySettings):
    """`[camera.hd]`. The default is one that a Zero 2 W holds, SD beside it."""

    width: Width = 1280
    height: Height = 720
    max_bps: MaxBps = 2_000_000


class SdSettings(QualitySettings):
    """`[camera.sd]`: for narrow paths, encoded while somebody watches it."""

    width: Width = 640
    height: Height = 360
    min_bps: MinBps = 100_000
    max_bps: MaxBps = 600_000


class CameraSettings(BaseModel):
    """`[camera]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[
        Literal["auto", "picamera2", "synthetic", "file"],
        Field(
            description="Where pictures come from: the camera, a drawn picture, or a recording. auto: the camera on a "
            "Raspberry Pi and wherever picamera2 finds one, else a drawn picture."
        ),
    ] = "auto"
    number: Annotated[int, Field(ge=0, le=7, description="Which camera, where there are several.")] = 0
    path: Annotated[
        Path | None,
        Field(description="The recording of source = file: H.264 without B-frames, in .h264, .ts or .mp4; looped."),
    ] = None
    hd: HdSettings = HdSettings()
    sd: SdSettings = SdSettings()
    keyframe_interval_s: Annotated[
        float,
        Field(ge=0.5, le=60, description="Longest time between keyframes; viewers get theirs on request anyway."),
    ] = 10
    open_timeout_s: Annotated[
        float,
        Field(ge=1, le=60, description="How long the camera may take to open before it counts as failed."),
    ] = 5
    stall_s: Annotated[
        float,
        Field(
            ge=0.5,
            le=60,
            description="How long an open camera may deliver nothing before it is opened again.",
        ),
    ] = 2
    idle_stop_s: Annotated[
        float,
        Field(ge=0, le=3600, description="How long the camera stays open after the last viewer has gone."),
    ] = 30

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.source == "file" and self.path is None:
            raise ValueError("path is required where source is file")
        if self.sd.width > self.hd.width or self.sd.height > self.hd.height:
            raise ValueError("sd is larger than hd")
        if level_for(*self.sd.stream) > level_for(*self.hd.stream):
            raise ValueError("sd needs a higher H.264 level than hd: lower its size, fps or max_bps")
        if self.hd.fps % self.sd.fps:
            raise ValueError(f"sd.fps has to divide hd.fps ({self.hd.fps})")
        # fps can be turned down to one a second while the camera runs; what is set here is the usual.
        if self.stall_s * self.hd.fps < _STALL_PICTURES:
            raise ValueError(f"stall_s is shorter than {_STALL_PICTURES} pictures at {self.hd.fps} fps")
        return self
