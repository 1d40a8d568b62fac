"""The slice of the settings that the broker link takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from edge.contract.topics import TOPIC_PREFIX

_TLS_PORT, _PLAIN_PORT = 8883, 1883
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_ALPN_PORT, _ALPN = 443, "x-amzn-mqtt-ca"
_CREDENTIALS = "/etc/edge-streamer/credentials"
_OF_DIRECTORY = "edge_"
"""systemd prefixes the files of a whole directory (`LoadCredential=edge:DIRECTORY`) with the name in the unit."""


def _credential(value: object) -> object:
    """Resolve `credential:NAME`: in the service to systemd's copy of the file, elsewhere to the file itself."""
    if not isinstance(value, str) or not value.startswith("credential:"):
        return value
    name = value.removeprefix("credential:")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError("a credential's name has letters, digits, _, - and . only")
    plain = _credentials() / name
    if "CREDENTIALS_DIRECTORY" not in os.environ or plain.exists():
        return plain
    from_directory = plain.with_name(_OF_DIRECTORY + name)
    return from_directory if from_directory.exists() else plain


def _credentials() -> Path:
    return Path(os.environ.get("CREDENTIALS_DIRECTORY", _CREDENTIALS))


SecretFile = Annotated[Path, BeforeValidator(_credential)]
"""A path, or `credential:NAME`."""

_Parameter = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class ClaimSettings(BaseModel):
    """`mqtt.claim`: how a device that has no certificate yet gets one of AWS IoT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = Field(pattern=r"^[A-Za-z0-9_-]{1,36}$", description="The name of the provisioning template.")
    cert_file: SecretFile = Field(description="The claim certificate, the same on every device.")
    key_file: SecretFile = Field(description="The private key of the claim certificate.")
    parameters: dict[_Parameter, _Parameter] = Field(
        default={},
        max_length=20,
        description="Parameters of the template, besides SerialNumber, which is the device id.",
    )


class MqttSettings(BaseModel):
    """`[mqtt]`. Secrets are files, never values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253, description="Host name or address of the MQTT broker.")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the broker. Without it: 8883 with TLS, 1883 without TLS."
    )
    client: Literal["auto", "aws", "paho"] = Field(
        default="auto", description="aws: the client of AWS's SDK. auto: that one for AWS IoT, else paho."
    )
    version: Literal["auto", "5", "3.1.1"] = Field(default="auto", description="auto: 5, or 3.1.1 where 5 is refused.")
    tls: bool = Field(default=True, description="False only on a network of your own: anybody on it can watch.")
    ca_file: SecretFile | None = Field(
        default=None, description="The certificate authority of the broker. Without it: the system's authorities."
    )
    cert_file: SecretFile | None = Field(default=None, description="The device's certificate.")
    key_file: SecretFile | None = Field(default=None, description="The private key of the certificate.")
    claim: ClaimSettings | None = Field(
        default=None, description="With it, cert_file and key_file are where a device puts its own, got by this claim."
    )
    username: str | None = Field(
        default=None, min_length=1, description="User name, for brokers that ask for user and password."
    )
    password_file: SecretFile | None = Field(
        default=None, description="A file that holds the password and nothing else."
    )
    prefix: str = Field(default="edge/v1", pattern=TOPIC_PREFIX, description="The prefix of every topic.")
    keepalive_s: int = Field(
        default=30, ge=5, le=1200, description="A dead link is noticed within one and a half times this."
    )
    connect_timeout_s: float = Field(default=10, gt=0, le=60, description="How long connecting to the broker may take.")
    publish_timeout_s: float = Field(
        default=10, gt=0, le=60, description="How long the broker may take to acknowledge a publish."
    )
    publishes_per_s: int = Field(
        default=100, ge=1, le=100_000, description="Limit of publishes; further ones wait a little. AWS IoT takes 100."
    )
    telemetry_s: float = Field(default=60, ge=0, le=86_400, description="Interval of telemetry. 0 turns it off.")
    reconnect_cap_s: float = Field(
        default=10, ge=0.5, le=300, description="The longest wait between two attempts to connect."
    )
    session_expiry_s: int = Field(
        default=300, ge=0, le=604_800, description="How long the broker keeps commands for a device that is away."
    )
    shadow: Literal["auto", "aws", "own", "off"] = Field(
        default="auto",
        description="aws: AWS IoT's shadow named edge. own: the same documents on topics below prefix. "
        "auto: aws at AWS IoT, else own.",
    )

    @property
    def effective_port(self) -> int:
        return self.port or (_TLS_PORT if self.tls else _PLAIN_PORT)

    @property
    def by_aws(self) -> bool:
        """Whether AWS's client makes the link."""
        return self.client == "aws" or (self.client == "auto" and self._at_aws)

    @property
    def alpn(self) -> list[str] | None:
        """AWS IoT's port 443 is shared with HTTPS: there the protocol is said in the TLS handshake."""
        return [_ALPN] if self.effective_port == _ALPN_PORT and (self.by_aws or self._at_aws) else None

    @property
    def shadow_by(self) -> Literal["aws", "own"] | None:
        """Whose topics the shadow has; None: there is none."""
        if self.shadow == "auto":
            return "aws" if self._at_aws else "own"
        return None if self.shadow == "off" else self.shadow

    @property
    def _at_aws(self) -> bool:
        return self.host.lower().endswith(_AWS_DOMAINS)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.claim is not None:
            self._can_keep_its_own(self.claim)
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ValueError("ca_file and cert_file need tls = true")
        if self.by_aws and (self.cert_file is None or self.username is not None or self.version == "3.1.1"):
            raise ValueError("the aws client takes cert_file and key_file, no username, and MQTT 5 (or: client = paho)")
        return self

    def _can_keep_its_own(self, claim: ClaimSettings) -> None:
        if self.cert_file is None or self.key_file is None:
            raise ValueError("claim needs cert_file and key_file: where the device puts its own")
        files = [self.cert_file, self.key_file, claim.cert_file, claim.key_file]
        if len(set(files)) < len(files):
            raise ValueError("with claim, cert_file, key_file and the claim's two are four files")
        if self.cert_file.parent != self.key_file.parent:
            raise ValueError("with claim, cert_file and key_file are in one directory")
        if self.cert_file.parent == _credentials():
            raise ValueError("with claim, cert_file and key_file are written: they cannot be credentials")
