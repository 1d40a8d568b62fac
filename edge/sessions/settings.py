"""The slice of the settings that this room takes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SessionSettings(BaseModel):
    """Limits and deadlines of sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_viewers: int = Field(
        default=5, ge=1, le=200, description="Limit of viewers. Further offers are refused as busy."
    )
    answer_timeout_s: float = Field(
        default=8, gt=0, le=60, description="How long an offer may wait for its answer, opening the camera included."
    )
    connect_timeout_s: float = Field(
        default=15, gt=0, le=120, description="How long a viewer may take to connect after the answer."
    )
