"""The slice of the settings that this room takes."""

from __future__ import annotations

import ipaddress

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ApiSettings(BaseModel):
    """Where the local page and API listen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="A loopback address: the page has no authentication yet.")
    port: int = Field(default=8081, ge=1, le=65535)

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            message = "only a loopback address (127.0.0.1, ::1) until the local page has authentication"
            raise ValueError(message)
        return host
