"""The device's shadow: the settings that a backend may change, and what is reported of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SHADOW_LIMIT_BYTES = 8 * 1024
"""Of what is desired; AWS IoT takes as much of a whole shadow, without its metadata."""


class _Section(BaseModel):
    # Strict: what is reported then equals what is desired, and AWS IoT sees no difference between them.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DesiredRange(_Section):
    """What a quality's encoder may aim at."""

    min_bps: int | None = None
    max_bps: int | None = None


class DesiredCamera(_Section):
    """Of `[camera]`."""

    hd: DesiredRange | None = None
    sd: DesiredRange | None = None
    idle_stop_s: float | None = None


class DesiredSessions(_Section):
    """Of `[sessions]`."""

    max_viewers: int | None = None


class DesiredLog(_Section):
    """Of `[log]`."""

    level: str | None = None


class Desired(_Section):
    """What of the settings may be changed from afar, by its key path in the settings file.

    What is left out, or null, is as the file says. The bounds are those of the settings.
    """

    camera: DesiredCamera | None = None
    sessions: DesiredSessions | None = None
    log: DesiredLog | None = None


class Outcome(BaseModel):
    """What became of the desired settings of a version. `reasons`: why they are not, or not yet, in force for good."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: Literal["applied", "refused", "trying", "rolled_back"]
    version: int | None = None
    reasons: list[str] = Field(default_factory=list)


class Reported(Desired):
    """The settings in force, by the same key paths; and what became of those that were desired last."""

    outcome: Outcome | None = None


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    clientToken: str | None = None  # noqa: N815  AWS IoT's name


class ShadowDocument(_Document):
    """What says something of the state. AWS IoT counts `version` up with each change of a shadow."""

    state: dict[str, Any]
    version: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class ShadowError(_Document):
    """Why AWS IoT refused a request."""

    code: int
    message: str = ""
