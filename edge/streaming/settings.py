"""The slice of the settings that this room takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class IceSettings(BaseModel):
    """Which STUN and TURN servers an offer may name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="Hosts of STUN and TURN servers that an offer may name; an offer that names another is refused.",
    )
    gather_timeout_s: float = Field(
        default=0.8,
        gt=0,
        le=5,
        description="How long an answer that has to hold all candidates waits for STUN and TURN.",
    )


class RtpSettings(BaseModel):
    """`[rtp]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packet_bytes: Annotated[
        int, Field(ge=500, le=1400, description="The largest packet, protection and header extensions included.")
    ] = 1200
    playout_delay_ms: Annotated[
        int, Field(ge=0, le=2000, description="How long a browser may hold pictures back to play them evenly; 0: not.")
    ] = 0
