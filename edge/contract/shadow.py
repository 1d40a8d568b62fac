"""The device's shadow: the settings that a backend may change, and what the device reports of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SHADOW_LIMIT_BYTES = 8 * 1024
"""The limit of the desired settings. AWS IoT has the same limit for a whole shadow without metadata."""


class _Section(BaseModel):
    # Strict: the reported values then equal the desired ones, and AWS IoT finds no difference.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DesiredRange(_Section):
    """The target bitrates of a quality's encoder."""

    min_bps: int | None = None
    max_bps: int | None = None


class DesiredCamera(_Section):
    """Settings of the section `[camera]`."""

    hd: DesiredRange | None = None
    sd: DesiredRange | None = None
    idle_stop_s: float | None = None


class DesiredSessions(_Section):
    """Settings of the section `[sessions]`."""

    max_viewers: int | None = None


class DesiredLog(_Section):
    """Settings of the section `[log]`."""

    level: str | None = None


class Desired(_Section):
    """The settings that a backend may change, under their key paths in the settings file.

    A setting that is left out or null has the value of the file. The bounds are those of the settings.
    """

    camera: DesiredCamera | None = None
    sessions: DesiredSessions | None = None
    log: DesiredLog | None = None


class Outcome(BaseModel):
    """The outcome of the desired settings of a version. `reasons`: why they are not, or not yet, in force."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: Literal["applied", "refused", "trying", "rolled_back"]
    version: int | None = None
    reasons: list[str] = Field(default_factory=list)


class Reported(Desired):
    """The settings in force, under the same key paths, and the outcome of the latest desired settings."""

    outcome: Outcome | None = None


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    clientToken: str | None = None  # noqa: N815  AWS IoT's name


class ShadowDocument(_Document):
    """A document with a state. AWS IoT increments `version` with each change of a shadow."""

    state: dict[str, Any]
    version: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class ShadowError(_Document):
    """Why AWS IoT refused a request."""

    code: int
    message: str = ""
