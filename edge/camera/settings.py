"""The slice of the settings that the camera takes."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads the annotations at run time
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CameraSettings(BaseModel):
    """`[camera]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[
        Literal["auto", "synthetic", "file"],
        Field(description="Where pictures come from: a drawn picture, or a recording; auto: what is there."),
    ] = "auto"
    path: Annotated[
        Path | None,
        Field(description="The recording of source = file: H.264 without B-frames, in .h264, .ts or .mp4; looped."),
    ] = None
    width: Annotated[int, Field(ge=160, le=1920, multiple_of=2, description="Of a picture, in pixels; even.")] = 1280
    height: Annotated[int, Field(ge=120, le=1920, multiple_of=2, description="Of a picture, in pixels; even.")] = 720
    fps: Annotated[
        int,
        Field(ge=1, le=60, description="Pictures a second; a recording with timestamps of its own keeps those."),
    ] = 30
    bitrate_bps: Annotated[
        int,
        Field(
            ge=100_000, le=20_000_000, description="Most bits a second that the encoder makes; viewers may lower it."
        ),
    ] = 2_000_000
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
            description="How long an open camera may deliver nothing before it is started again.",
        ),
    ] = 2
    idle_stop_s: Annotated[
        float,
        Field(ge=0, le=3600, description="How long the camera stays open after the last viewer has gone."),
    ] = 30

    @property
    def chosen_source(self) -> Literal["synthetic", "file"]:
        """What `auto` comes to on this machine."""
        return "synthetic" if self.source == "auto" else self.source

    @model_validator(mode="after")
    def _file_has_a_path(self) -> Self:
        if self.source == "file" and self.path is None:
            raise ValueError("path is required where source is file")
        return self
