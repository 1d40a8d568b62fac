"""The slice of the settings that the broker link takes."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads the annotations at run time
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.contract.topics import TOPIC_PREFIX

_TLS_PORT, _PLAIN_PORT = 8883, 1883


class MqttSettings(BaseModel):
    """`[mqtt]`. Secrets are files, never values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253, description="The broker.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Default: 8883 with TLS, 1883 without.")
    version: Literal["auto", "5", "3.1.1"] = Field(default="auto", description="auto: 5, or 3.1.1 where 5 is refused.")
    tls: bool = Field(default=True, description="False only on a network of your own: anybody on it can watch.")
    ca_file: Path | None = Field(default=None, description="Who signs the broker's certificate. Default: the system's.")
    cert_file: Path | None = Field(default=None, description="The device's certificate.")
    key_file: Path | None = Field(default=None, description="The private key of the certificate.")
    username: str | None = Field(default=None, min_length=1)
    password_file: Path | None = Field(default=None, description="A file that holds the password and nothing else.")
    prefix: str = Field(default="edge/v1", pattern=TOPIC_PREFIX, description="Of every topic.")
    keepalive_s: int = Field(default=30, ge=5, le=1200, description="A dead link is noticed within twice this.")
    connect_timeout_s: float = Field(default=10, gt=0, le=60)
    publish_timeout_s: float = Field(default=10, gt=0, le=60, description="For the broker's acknowledgement.")
    reconnect_cap_s: float = Field(default=10, ge=0.5, le=300, description="The longest wait between two tries.")
    session_expiry_s: int = Field(
        default=300, ge=0, le=604_800, description="How long the broker keeps commands for a device that is away."
    )

    @property
    def effective_port(self) -> int:
        return self.port or (_TLS_PORT if self.tls else _PLAIN_PORT)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ValueError("ca_file and cert_file need tls = true")
        return self
