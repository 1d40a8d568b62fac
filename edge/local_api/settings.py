"""The slice of the settings that this room takes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ApiSettings(BaseModel):
    """Where the local page and API listen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Literal["127.0.0.1"] = Field(
        default="127.0.0.1", description="Loopback only, until the local page has authentication."
    )
    port: int = Field(default=8081, ge=1, le=65535, description="Port of the local page and API.")
