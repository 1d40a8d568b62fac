"""The environment of a device: a broker with TLS and client certificates, and a backend that signs tokens."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from edge.client import CameraClient, Signer
from edge.client.tokens import jwks
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.rigs.machine import Machine

_ETC = "/etc/edge-streamer"


class Site:
    """A context manager that runs the broker. `address`: where it listens; its certificate is for this address."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory
        self.authority = Authority(directory, address=address)
        self.signer = Signer.generate(None)
        self.jwks_file = directory / "jwks.json"
        self.jwks_file.write_text(jwks(self.signer))
        self.broker = Mosquitto(directory, authority=self.authority, address=address)

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()

    def settings(self, device: str, more: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
        """Return the sections of a device's settings file."""
        sections: dict[str, dict[str, Any]] = {
            "device": {"id": device},
            "mqtt": {
                **self.broker.settings(ca_file=f"{_ETC}/ca.pem", reconnect_cap_s=1),
                "cert_file": "credential:device.pem",
                "key_file": "credential:device.key",
            },
            # The clock of the test machine may not be synchronized.
            "auth": {"jwks_file": f"{_ETC}/jwks.json", "trust_clock": True},
            "camera": {"source": "synthetic"},
        }
        for name, section in (more or {}).items():
            sections[name] = {**sections.get(name, {}), **section}
        return sections

    def provision(self, machine: Machine, device: str) -> None:
        """Write the device's files to the paths in its settings."""
        certificate, key = self.authority.issue(device)
        machine.write(f"{_ETC}/ca.pem", self.authority.ca_file.read_bytes())
        machine.write(f"{_ETC}/jwks.json", self.jwks_file.read_bytes())
        machine.write(f"{_ETC}/credentials/device.pem", certificate.read_bytes(), 0o600)
        machine.write(f"{_ETC}/credentials/device.key", key.read_bytes(), 0o600)
        machine.run("chmod", "700", f"{_ETC}/credentials")

    def token(self, device: str, *scopes: str) -> str:
        return self.signer.sign(device, "ann", list(scopes or ("view",)))

    @asynccontextmanager
    async def client(self, name: str = "backend") -> AsyncIterator[CameraClient]:
        certificate, key = self.authority.issue(name)
        mqtt = self.broker.settings(ca_file=self.authority.ca_file, cert_file=certificate, key_file=key)
        async with CameraClient.connect(MqttSettings(**mqtt, reconnect_cap_s=1), name) as client:
            yield client
