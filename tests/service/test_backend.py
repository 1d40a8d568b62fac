"""The reference backend over real HTTP, with a device on a real broker."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from pydantic import SecretStr

from edge.client import CameraClient, Signer
from edge.contract.codes import Code, EndReason
from edge.contract.messages import IceServer
from edge.demo.backend import BackendSettings, make_backend
from edge.demo.broker import EmbeddedBroker
from edge.demo.server import serving
from edge.demo.turn import IceSettings, TurnSettings
from edge.errors import Rejected
from tests.rigs.daemon import free_port
from tests.rigs.fake_device import ANSWER_SDP, FakeDevice, mqtt_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CANDIDATE = "candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host"
OFFER = {"type": "offer", "sdp": "v=0"}
GRACE_S = 0.3


@pytest.fixture
async def device() -> AsyncIterator[FakeDevice]:
    device = FakeDevice(free_port())
    async with EmbeddedBroker("127.0.0.1", device.port), device.running_device():
        yield device


@asynccontextmanager
async def backend(device: FakeDevice, ice: IceSettings | None = None) -> AsyncIterator[httpx.AsyncClient]:
    settings = BackendSettings(ice=ice or IceSettings(), grace_s=GRACE_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with (
            CameraClient.connect(mqtt_settings(device.port), "bff-7", timeout_s=2) as client,
            serving(make_backend(client.camera("cam-1"), Signer.generate(), settings), listener),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as http,
        ):
            await device.wait_for_client(client.camera("cam-1"))
            yield http


@pytest.fixture
async def http(device: FakeDevice) -> AsyncIterator[httpx.AsyncClient]:
    async with backend(device) as http:
        yield http


class Events:
    """Reads one event stream like a browser."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(5):
            kind = ""
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    return kind, json.loads(value)
        raise EOFError


@asynccontextmanager
async def events(http: httpx.AsyncClient, session: str) -> AsyncIterator[Events]:
    async with http.stream("GET", f"/api/session-events/{session}") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response.aiter_lines())


async def test_a_page_without_trickle_gets_a_complete_answer(http: httpx.AsyncClient, device: FakeDevice) -> None:
    response = await http.post("/api/start-webrtc", json=OFFER)
    assert response.status_code == 200
    assert response.json()["webrtc_answer"] == ANSWER_SDP
    (offer,) = await device.wait_for_commands("session.offer")
    assert response.json()["session"] == offer.session
    assert not offer.trickle
    assert re.fullmatch(r"127\.0\.0\.1-[0-9a-f]{8}", offer.viewer)
    ((command, _),) = device.commands
    assert command.token is not None
    claims = jwt.decode(command.token.get_secret_value(), options={"verify_signature": False})
    assert (claims["aud"], claims["sub"], claims["client"], claims["scope"]) == ("cam-1", offer.viewer, "bff-7", "view")


async def test_a_page_with_trickle_gets_candidates(http: httpx.AsyncClient, device: FakeDevice) -> None:
    device.candidates = [CANDIDATE, None]
    async with events(http, "page-1") as stream:
        response = await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
        assert response.json() == {"webrtc_answer": ANSWER_SDP, "session": "page-1"}
        (offer,) = await device.wait_for_commands("session.offer")
        assert offer.trickle
        assert await stream.next() == ("candidate", {"candidate": CANDIDATE, "sdpMid": "0"})
        assert await stream.next() == ("candidate", {"candidate": None, "sdpMid": "0"})
        await device.end("page-1", EndReason.STOPPED)
        assert await stream.next() == ("closed", {"reason": "stopped", "code": "stopped"})
        with pytest.raises(EOFError):
            await stream.next()


async def test_a_late_event_stream_misses_no_event(http: httpx.AsyncClient, device: FakeDevice) -> None:
    device.candidates = [CANDIDATE]
    await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
    async with events(http, "page-1") as stream:
        assert (await stream.next())[1]["candidate"] == CANDIDATE


async def test_candidates_and_the_stop_reach_the_device(http: httpx.AsyncClient, device: FakeDevice) -> None:
    await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
    for line in (CANDIDATE, None):
        body = {"session": "page-1", "candidate": line, "sdpMid": "0"}
        assert (await http.post("/api/candidate", json=body)).status_code == 204
    assert [body.candidate for body in await device.wait_for_commands("session.candidate", 2)] == [CANDIDATE, None]
    for _ in range(2):  # the second one finds no session, which is not an error
        assert (await http.post("/api/stop-webrtc", json={"session": "page-1"})).status_code == 204
    assert not device.sessions


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Rejected(Code.BUSY, "5 of 5 viewers are connected", retry_after_s=20), 503),
        (Rejected(Code.NO_COMMON_CODEC, "this browser has no H.264"), 406),
        (Rejected(Code.RATE_LIMITED, "too many commands", retry_after_s=1), 429),
    ],
)
async def test_a_refusal_is_passed_on(
    http: httpx.AsyncClient, device: FakeDevice, refusal: Rejected, status: int
) -> None:
    device.refusals["session.offer"] = refusal
    response = await http.post("/api/start-webrtc", json=OFFER)
    assert response.status_code == status
    assert response.json() == {
        "error": {"code": refusal.code, "message": refusal.message, "retry_after_s": refusal.retry_after_s}
    }
    wait = None if refusal.retry_after_s is None else str(refusal.retry_after_s)
    assert response.headers.get("retry-after") == wait


@pytest.mark.parametrize("body", [{}, {"type": "answer", "sdp": "v=0"}, OFFER | {"session": "no id"}, []])
async def test_a_bad_request_does_not_reach_the_device(
    http: httpx.AsyncClient, device: FakeDevice, body: object
) -> None:
    response = await http.post("/api/start-webrtc", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_message"
    assert not device.commands


async def test_a_device_without_a_reply_is_reported(http: httpx.AsyncClient, device: FakeDevice) -> None:
    device.silent.add("session.offer")
    response = await http.post("/api/start-webrtc", json=OFFER)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


async def test_the_session_of_a_disconnected_page_is_closed(http: httpx.AsyncClient, device: FakeDevice) -> None:
    async with events(http, "page-1"):
        await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
        await asyncio.sleep(2 * GRACE_S)
        assert "page-1" in device.sessions
    (closed,) = await device.wait_for_commands("session.close")
    assert closed.session == "page-1"


async def test_a_reconnected_event_stream_keeps_its_session(http: httpx.AsyncClient, device: FakeDevice) -> None:
    async with events(http, "page-1"):
        await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
    async with events(http, "page-1"):
        await asyncio.sleep(2 * GRACE_S)
        assert "page-1" in device.sessions


async def test_a_refused_page_has_no_session_to_close(http: httpx.AsyncClient, device: FakeDevice) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected")
    async with events(http, "page-1"):
        await http.post("/api/start-webrtc", json=OFFER | {"session": "page-1"})
    await asyncio.sleep(2 * GRACE_S)
    assert [command.type for command, _ in device.commands] == ["session.offer"]


async def test_page_and_device_get_the_same_turn_credentials(device: FakeDevice, tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("s3cret\n")
    stun = IceServer(urls="stun:stun.example.org")
    fixed = IceServer(urls="turn:a.example.org", username="u", credential=SecretStr("p"))
    turn = TurnSettings(urls=["turn:b.example.org"], secret_file=secret_file, ttl_s=600)
    async with backend(device, IceSettings(servers=[stun, fixed], turn=turn)) as http:
        first, second, made = (await http.get("/api/turn-credentials")).json()
        assert first == {"urls": "stun:stun.example.org"}
        assert second == {"urls": "turn:a.example.org", "username": "u", "credential": "p"}
        expiry, user = made["username"].split(":")
        assert 0 < int(expiry) - time.time() <= 600
        assert user == "viewer"
        digest = hmac.new(b"s3cret", made["username"].encode(), hashlib.sha1).digest()
        assert base64.b64decode(made["credential"]) == digest

        await http.post("/api/start-webrtc", json=OFFER)
        (offer,) = await device.wait_for_commands("session.offer")
        assert [server.urls for server in offer.ice_servers] == [first["urls"], second["urls"], made["urls"]]
        assert offer.ice_servers[1].credential.get_secret_value() == "p"

        secret_file.unlink()
        response = await http.get("/api/turn-credentials")
        assert response.status_code == 503
        assert "secret cannot be read" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/plain"])
async def test_pages_load_nothing_from_other_hosts(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 200
    assert "http://" not in response.text
    assert "https://" not in response.text
