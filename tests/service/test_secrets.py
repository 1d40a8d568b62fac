"""The daemon with authority, on a real broker: what is spent stays so across a restart, and no secret gets out."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm
from pydantic import SecretStr

from edge.client import CameraClient, Signer
from edge.contract.messages import IceServer
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import ROOT, Daemon, required_auth
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

SHADOW = "edge/v1/cam-1/shadow"
SDP = (ROOT / "tests/offers/chrome.sdp").read_text()


class Overheard:
    """All that the daemon publishes, for as long as a test runs; and settings are left for it."""

    def __init__(self, mqtt: MqttSettings) -> None:
        self.said: list[bytes] = []
        self.topics: set[str] = set()
        self._came = asyncio.Event()
        self._broker = PahoBroker(mqtt, "eavesdropper", ("#",), None)
        self._broker.listen(self._hear, lambda _: None)

    def _hear(self, message: Message) -> None:
        if not message.topic.endswith(("/command", "/delta")):
            self.said.append(message.payload)
            self.topics.add(message.topic)
            self._came.set()

    async def until(self, *parts: bytes) -> None:
        """That one message has all of these."""
        async with asyncio.timeout(20):
            while not any(all(part in said for part in parts) for said in self.said):
                self._came.clear()
                await self._came.wait()

    async def publish(self, topic: str, fields: dict[str, Any]) -> None:
        await self._broker.publish(Message(topic, json.dumps(fields).encode(), retain=True))

    async def run(self) -> None:
        await self._broker.run(asyncio.Event())


async def code_of(asked: Awaitable[Any]) -> str | None:
    try:
        await asked
    except Rejected as exc:
        return exc.code
    return None


@pytest.mark.slow
async def test_tokens_on_a_real_device_and_nothing_secret_in_what_it_says(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    signer = Signer(key, "one")
    broker = Mosquitto(tmp_path)
    daemon = Daemon(
        tmp_path,
        broker.settings(tls=False, reconnect_cap_s=1, telemetry_s=0.1),
        auth=required_auth(signer, tmp_path),
        ice={"allowed_hosts": ["127.0.0.1"], "allowed_ports": [9]},
        log={"level": "debug"},
    )
    broker.start()
    mqtt = MqttSettings(**broker.settings(tls=False))
    overheard = Overheard(mqtt)
    listening = asyncio.create_task(overheard.run())
    view, manage, foreign = (
        signer.sign(device, "anna", [scope], client="bff-1")
        for device, scope in (("cam-1", "view"), ("cam-1", "manage"), ("cam-2", "manage"))
    )
    ours = IceServer(urls="turn:127.0.0.1:9", username="user", credential=SecretStr("turn-s3cret"))
    evil = IceServer(urls="turn:evil.example", username="user", credential=SecretStr("evil-s3cret"))
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(mqtt, "bff-1") as client:
            camera = client.camera("cam-1")
            await camera.online()
            assert await code_of(camera.sessions()) == "unauthorized"
            assert await code_of(camera.sessions(token=foreign)) == "unauthorized"
            assert await code_of(camera.sessions(token=manage[:-6])) == "unauthorized"
            assert await code_of(camera.sessions(token=view)) == "forbidden"
            assert await code_of(camera.offer(SDP, token=view, ice_servers=[evil])) == "forbidden"
            assert await code_of(camera.offer(SDP.replace("H264", "H265"), token=view)) == "no_common_codec"
            answer = await camera.offer(SDP, viewer="boris", token=view, ice_servers=[ours], trickle=False)
            assert answer.sdp
            (session,) = await camera.sessions(token=manage)
            assert session.viewer == "anna"
            assert await code_of(camera.offer(SDP, token=view)) == "replayed"
            # Errors name an unknown key, as for the settings file, but never a value.
            desired = {"key-n4me": "unknown-s3cret", "log": {"level": "level-s3cret"}, "sessions": "section-s3cret"}
            await overheard.publish(f"{SHADOW}/update/delta", {"version": 1, "state": desired})
            await overheard.until(b'"reported"', b"refused", b"key-n4me: unknown key")
            await overheard.until(b"settings.refused", b"key-n4me")
            overheard.said.append(json.dumps(daemon.status()).encode() + daemon.metrics().encode())
            await asyncio.to_thread(daemon.stop)
            await asyncio.to_thread(daemon.start)
            await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"])
            assert await code_of(camera.offer(SDP, token=view)) == "replayed"
            overheard.said.append(json.dumps(daemon.status()).encode() + daemon.metrics().encode())
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        await asyncio.to_thread(daemon.end)
        broker.stop()
    kept = [path.read_bytes() for path in (tmp_path / "state").iterdir()]
    everything = b"\n".join([*overheard.said, *kept, daemon.log().encode()])
    assert b"DEBUG" in everything
    assert b"session.answer" in everything
    assert {"status", "event", "telemetry", "update"} <= {topic.rpartition("/")[2] for topic in overheard.topics}
    tokens = [part for token in (view, manage, foreign) for part in token.split(".")[1:]]
    private = OKPAlgorithm.to_jwk(key, as_dict=True)["d"]
    passwords = re.findall(r"a=ice-pwd:(\S+)", SDP)
    assert passwords
    values = ("turn-s3cret", "evil-s3cret", "unknown-s3cret", "level-s3cret", "section-s3cret")
    for secret in (*tokens, private, *passwords, *values):
        assert secret.encode() not in everything


@pytest.mark.parametrize("content", [None, "{}"])
async def test_without_the_backends_keys_it_does_not_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)
    auth = {"mode": "required", "jwks_file": str(tmp_path / "jwks.json")}
    daemon = Daemon(tmp_path, {"host": "127.0.0.1", "tls": False}, auth=auth)
    ended = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge", "run", "--config", str(daemon.config)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await ended.communicate()
    assert (ended.returncode, b"auth.jwks_file: " in output, b"Traceback" in output) == (78, True, False)
