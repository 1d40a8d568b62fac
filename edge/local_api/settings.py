"""The settings of the local API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edge.contract.section import Section


class ApiSettings(Section):
    """`[api]`: where the local page and API listen."""

    host: Literal["127.0.0.1"] = Field(
        default="127.0.0.1", description="Loopback only, until the local page has authentication."
    )
    port: int = Field(default=8081, ge=1, le=65535, description="Port of the local page and API.")
