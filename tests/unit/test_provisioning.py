"""A faulty service costs few registered certificates that no device has."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from edge.host.atomic_file import AtomicFile
from edge.mqtt import provisioning
from edge.mqtt.broker import Message
from edge.mqtt.provisioning import CREATE, NotProvisioned, Provisioning
from edge.mqtt.settings import ClaimSettings, MqttSettings
from tests.rigs.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.errors import BrokerLost

_DAY_S = 86_400


class Service:
    """The link and AWS IoT. `answer`: the answer to a registration; None: there is none."""

    version = "5"

    def __init__(self, authority: Authority, answer: tuple[str, bytes] | None) -> None:
        self.registered = 0
        self._authority = authority
        self._answer = answer
        self._receive: Callable[[Message], None] = lambda _: None

    async def dial(
        self, _settings: MqttSettings, _client_id: str, _will: Message | None, receive: Callable[[Message], None]
    ) -> Service:
        self._receive = receive
        return self

    async def open(self) -> None: ...

    async def subscribe(self, topics: tuple[str, ...]) -> None: ...

    def end(self, error: BrokerLost) -> None: ...

    async def close(self) -> None: ...

    async def serve(self) -> None:
        await asyncio.Event().wait()

    async def publish(self, message: Message) -> None:
        if message.topic == CREATE:
            request = x509.load_pem_x509_csr(json.loads(message.payload)["certificateSigningRequest"].encode())
            pem = self._authority.sign(request)
            issued = {"certificateId": "1", "certificatePem": pem, "certificateOwnershipToken": "secret"}
            self._receive(Message(f"{CREATE}/accepted", json.dumps(issued).encode()))
            return
        self.registered += 1
        if self._answer is not None:
            self._receive(Message(f"{message.topic}/{self._answer[0]}", self._answer[1]))


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        (("accepted", b'{"thingName": "cam-2"}'), 2, 6),
        (("accepted", b"{}"), 6, 15),
        (None, 6, 15),
        (("rejected", b"{}"), 150, 250),
    ],
)
async def test_certificates_per_day_are_few_unless_the_service_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[str, bytes] | None, least: int, most: int
) -> None:
    monkeypatch.setattr(provisioning, "_ANSWER_TIMEOUT_S", 0.0)
    monkeypatch.setattr(random, "random", lambda: 0.5)
    own = tmp_path / "own"
    claim = ClaimSettings(template="edge-camera", cert_file=tmp_path / "claim.pem", key_file=tmp_path / "claim.key")
    settings = MqttSettings(host="aws", cert_file=own / "device.pem", key_file=own / "device.key", claim=claim)
    service = Service(Authority(tmp_path), answer)
    device = Provisioning(settings, claim, "cam-1", AtomicFile)
    waited_s = 0.0
    while waited_s < _DAY_S:
        with pytest.raises(NotProvisioned) as caught:
            await device.ensure(service.dial)
        waited_s += caught.value.retry_after_s
    assert least <= service.registered <= most
