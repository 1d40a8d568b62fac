"""The slice of the settings that this room takes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SessionSettings(BaseModel):
    """Limits and deadlines of sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_viewers: int = Field(default=5, ge=1, le=200, description="More offers than this are refused as busy.")
    answer_timeout_s: float = Field(
        default=8, gt=0, le=60, description="From an offer to its answer, opening the camera included."
    )
    connect_timeout_s: float = Field(default=15, gt=0, le=120, description="From the answer to the connection.")
