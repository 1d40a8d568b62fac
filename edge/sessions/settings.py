"""The settings of sessions."""

from __future__ import annotations

from pydantic import Field

from edge.contract.section import Section


class SessionSettings(Section):
    """`[sessions]`: limits and deadlines."""

    max_viewers: int = Field(
        default=5,
        ge=1,
        le=200,
        description="Largest number of viewers. Further offers are rejected with the code busy.",
    )
    max_per_viewer: int = Field(
        default=2,
        ge=1,
        le=200,
        description="Largest number of sessions of one viewer (a token's sub). A further offer replaces the viewer's "
        "oldest session that is not connected, or is rejected with the code busy. Not with auth.mode off.",
    )
    answer_timeout_s: float = Field(
        default=8, gt=0, le=60, description="Time limit from an offer to its answer, including opening the camera."
    )
    connect_timeout_s: float = Field(
        default=15, gt=0, le=120, description="Time limit from the answer to the connection."
    )
