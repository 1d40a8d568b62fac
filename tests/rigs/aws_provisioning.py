"""A fake of AWS IoT fleet provisioning over MQTT, on a broker with the permissions of the sample policies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge.errors import BrokerLost
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.provisioning import CREATE, register_topic
from edge.mqtt.settings import MqttSettings
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from tests.rigs.certificates import Authority

TEMPLATE = "edge-camera"
REGISTER = register_topic(TEMPLATE)

# Users are the names of certificates. A device may use topics under its own name, as in docs/aws/device-policy.json.
_ACCESS = f"""
pattern readwrite edge/v1/%u/#
user claim
topic write {CREATE}
topic read {CREATE}/accepted
topic read {CREATE}/rejected
topic write {REGISTER}
topic read {REGISTER}/accepted
topic read {REGISTER}/rejected
user service
topic readwrite $aws/#
user bff-1
topic readwrite edge/v1/#
"""


def claim_broker(directory: Path, authority: Authority) -> Mosquitto:
    """A broker that gives a claim the same permissions as AWS IoT."""
    return Mosquitto(directory, authority=authority, access=_ACCESS)


def accepted(fields: dict[str, Any]) -> tuple[str, bytes]:
    return "accepted", json.dumps(fields).encode()


def rejected(status: int, code: str, message: str) -> tuple[str, bytes]:
    fields = {"statusCode": status, "errorCode": code, "errorMessage": message}
    return "rejected", json.dumps(fields).encode()


class AwsProvisioning:
    """Answers requests with certificates of `authority`.

    `overrides`: by request topic, a function that gets the normal answer's fields and returns the reply to send:
    ("accepted" or "rejected", payload), or None for no reply.
    """

    def __init__(self, broker: Mosquitto, authority: Authority) -> None:
        self.received: list[Message] = []
        self.overrides: dict[str, Callable[[dict[str, Any]], tuple[str, bytes] | None]] = {}
        self.tokens: list[str] = []
        self.things: dict[str, CertificatePublicKeyTypes] = {}
        """Public keys by thing name."""
        self._authority = authority
        self._issued: dict[str, CertificatePublicKeyTypes] = {}
        cert_file, key_file = authority.issue("service")
        settings = MqttSettings(
            **broker.settings(ca_file=authority.ca_file, cert_file=cert_file, key_file=key_file, reconnect_cap_s=0.5)
        )
        self._broker = PahoBroker(settings, "service", (CREATE, REGISTER), None)
        self._up = asyncio.Event()
        self._broker.listen(self._receive, lambda _: self._up.set())
        self._running: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._broker.run(asyncio.Event()))
        async with asyncio.timeout(15):
            await self._up.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running, *self._answering})

    def requests(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.received if message.topic == topic]

    def keys(self) -> list[bytes]:
        """The public keys of all certificate requests."""
        keys = [_request(fields).public_key() for fields in self.requests(CREATE)]
        encoding, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return [key.public_bytes(encoding, kind) for key in keys]

    def _receive(self, message: Message) -> None:
        self.received.append(message)
        fields = json.loads(message.payload)
        default = self._create(fields) if message.topic == CREATE else self._register(fields)
        answer = self.overrides.get(message.topic, accepted)(default)
        if answer is not None:
            task = asyncio.create_task(self._reply(Message(f"{message.topic}/{answer[0]}", answer[1])))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _reply(self, message: Message) -> None:
        with contextlib.suppress(BrokerLost):  # the link was lost; the device repeats its request
            await self._broker.publish(message)

    def _create(self, fields: dict[str, Any]) -> dict[str, Any]:
        request = _request(fields)
        token = secrets.token_urlsafe(200)
        self.tokens.append(token)
        self._issued[token] = request.public_key()
        pem = self._authority.sign(request)
        return {"certificateId": secrets.token_hex(32), "certificatePem": pem, "certificateOwnershipToken": token}

    def _register(self, fields: dict[str, Any]) -> dict[str, Any]:
        name = fields["parameters"]["SerialNumber"]
        self.things[name] = self._issued.pop(fields["certificateOwnershipToken"])
        return {"thingName": name, "deviceConfiguration": {"colour": "blue"}}


def _request(fields: dict[str, Any]) -> x509.CertificateSigningRequest:
    request = x509.load_pem_x509_csr(fields["certificateSigningRequest"].encode())
    assert request.is_signature_valid
    return request
