"""The settings of the link to the broker."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from edge.contract.section import Rule, Section
from edge.contract.topics import TOPIC_PREFIX

_TLS_PORT, _PLAIN_PORT = 8883, 1883
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_ALPN_PORT, _ALPN = 443, "x-amzn-mqtt-ca"
_CREDENTIALS = "/etc/edge-streamer/credentials"
_DIRECTORY_PREFIX = "edge_"
"""With `LoadCredential=edge:DIRECTORY`, systemd prefixes the files of the directory with the name in the unit."""


def credentials_directory() -> Path:
    """In the service the directory of systemd's copies, elsewhere the directory of the files themselves."""
    return Path(os.environ.get("CREDENTIALS_DIRECTORY", _CREDENTIALS))


def _credential(value: object) -> object:
    """Resolve `credential:NAME` to a path."""
    if not isinstance(value, str) or not value.startswith("credential:"):
        return value
    name = value.removeprefix("credential:")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError("the name of a credential consists of letters, digits, _, - and .")
    plain = credentials_directory() / name
    if "CREDENTIALS_DIRECTORY" not in os.environ or plain.exists():
        return plain
    from_directory = plain.with_name(_DIRECTORY_PREFIX + name)
    return from_directory if from_directory.exists() else plain


SecretFile = Annotated[Path, BeforeValidator(_credential)]
"""A path, or `credential:NAME`."""

_Parameter = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class ClaimSettings(Section):
    """`mqtt.claim`: how a device without a certificate obtains one from AWS IoT."""

    template: str = Field(pattern=r"^[A-Za-z0-9_-]{1,36}$", description="Name of the provisioning template.")
    cert_file: SecretFile = Field(description="The claim certificate, which all devices share.")
    key_file: SecretFile = Field(description="The private key of the claim certificate.")
    parameters: dict[_Parameter, _Parameter] = Field(
        default={},
        max_length=20,
        description="Parameters of the template. SerialNumber, the device id, is always sent.",
    )


def _certificate_has_a_key(mqtt: MqttSettings) -> tuple[str, str] | None:
    if mqtt.cert_file is not None and mqtt.key_file is None:
        return "key_file", "missing; cert_file needs it"
    if mqtt.cert_file is None and mqtt.key_file is not None:
        return "cert_file", "missing; key_file needs it"
    return None


def _password_has_a_user(mqtt: MqttSettings) -> tuple[str, str] | None:
    missing = mqtt.password_file is not None and mqtt.username is None
    return ("username", "missing; password_file needs it") if missing else None


def _certificates_have_tls(mqtt: MqttSettings) -> tuple[str, str] | None:
    unused = not mqtt.tls and (mqtt.ca_file or mqtt.cert_file)
    return ("tls", "must be true with ca_file or cert_file") if unused else None


def _aws_client_is_possible(mqtt: MqttSettings) -> tuple[str, str] | None:
    if mqtt.by_aws and (mqtt.cert_file is None or mqtt.username is not None or mqtt.version == "3.1.1"):
        said = "the aws client needs cert_file, key_file and MQTT 5, and takes no username"
        return "client", f'{said}; client = "paho" has no such limits'
    return None


def _claim_has_files(mqtt: MqttSettings) -> tuple[str, str] | None:
    missing = mqtt.claim is not None and mqtt.cert_file is None and mqtt.key_file is None
    return (
        ("claim", "needs cert_file and key_file, where the device stores its own certificate and key")
        if missing
        else None
    )


def _claim_files_differ(mqtt: MqttSettings) -> tuple[str, str] | None:
    if mqtt.claim is None or mqtt.cert_file is None or mqtt.key_file is None:
        return None
    files = [mqtt.cert_file, mqtt.key_file, mqtt.claim.cert_file, mqtt.claim.key_file]
    if len(set(files)) < len(files):
        return "claim", "cert_file and key_file of mqtt and of the claim must be four different files"
    return None


def _own_files_are_together(mqtt: MqttSettings) -> tuple[str, str] | None:
    if mqtt.claim is None or mqtt.cert_file is None or mqtt.key_file is None:
        return None
    if mqtt.cert_file.parent != mqtt.key_file.parent:
        return "key_file", "must be in one directory with cert_file, since the device writes both (claim)"
    if mqtt.cert_file.parent == credentials_directory():
        return "cert_file", "cannot be a credential, since the device writes it (claim)"
    return None


class MqttSettings(Section):
    """`[mqtt]`. Secrets are files, never values."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _certificate_has_a_key,
        _password_has_a_user,
        _certificates_have_tls,
        _aws_client_is_possible,
        _claim_has_files,
        _claim_files_differ,
        _own_files_are_together,
    )

    host: str = Field(min_length=1, max_length=253, description="Host name or address of the MQTT broker.")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the broker. Default: 8883 with TLS, 1883 without TLS."
    )
    client: Literal["auto", "aws", "paho"] = Field(
        default="auto", description="MQTT client. aws: the one of AWS's SDK. auto: aws for AWS IoT, else paho."
    )
    version: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="Version of MQTT. auto: 5, or 3.1.1 if the broker refuses 5."
    )
    tls: bool = Field(default=True, description="Use false only in your own network: anybody in it can watch.")
    ca_file: SecretFile | None = Field(
        default=None, description="Certificate authority of the broker. Default: the system's authorities."
    )
    cert_file: SecretFile | None = Field(default=None, description="Certificate of the device.")
    key_file: SecretFile | None = Field(default=None, description="Private key of the certificate.")
    claim: ClaimSettings | None = Field(
        default=None, description="With a claim, the device obtains its certificate and writes cert_file and key_file."
    )
    username: str | None = Field(
        default=None, min_length=1, description="User name, for brokers that require user and password."
    )
    password_file: SecretFile | None = Field(
        default=None, description="File that contains the password and nothing else."
    )
    prefix: str = Field(default="edge/v1", pattern=TOPIC_PREFIX, description="Prefix of every topic.")
    keepalive_s: int = Field(
        default=30,
        ge=5,
        le=1200,
        description="MQTT keep-alive. A dead link is noticed within one and a half times this.",
    )
    connect_timeout_s: float = Field(default=10, gt=0, le=60, description="Time limit for connecting to the broker.")
    publish_timeout_s: float = Field(
        default=10, gt=0, le=60, description="Time limit for the broker's acknowledgement of a publish."
    )
    publishes_per_s: int = Field(
        default=100, ge=1, le=100_000, description="Largest publish rate. Further messages wait. AWS IoT allows 100."
    )
    telemetry_s: float = Field(default=60, ge=0, le=86_400, description="Interval of telemetry. 0: no telemetry.")
    reconnect_cap_s: float = Field(
        default=10, ge=0.5, le=300, description="Longest wait between two attempts to connect."
    )
    session_expiry_s: int = Field(
        default=300, ge=0, le=604_800, description="How long the broker keeps commands for a device that is offline."
    )
    shadow: Literal["auto", "aws", "own", "off"] = Field(
        default="auto",
        description="Remote settings. aws: the shadow named edge in AWS IoT. own: the same documents on topics below "
        "prefix. auto: aws for AWS IoT, else own.",
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
        """The protocol to name in the TLS handshake: AWS IoT shares port 443 with HTTPS."""
        return [_ALPN] if self.effective_port == _ALPN_PORT and (self.by_aws or self._at_aws) else None

    @property
    def shadow_by(self) -> Literal["aws", "own"] | None:
        """Whose topics the shadow uses; None: there is no shadow."""
        if self.shadow == "auto":
            return "aws" if self._at_aws else "own"
        return None if self.shadow == "off" else self.shadow

    @property
    def _at_aws(self) -> bool:
        return self.host.lower().endswith(_AWS_DOMAINS)
