"""Viewers and TURN servers that disappear without closing: what is left behind, and what is logged."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from edge.contract.messages import IceServer
from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import join_annexb
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.streaming.hub import Hub
from edge.streaming.loop_errors import LoopErrors
from edge.streaming.peer import PeerFactory
from edge.streaming.settings import IceSettings, RtpSettings
from tests.rigs.coturn import Coturn

if TYPE_CHECKING:
    from edge.streaming.peer import Peer

ROOT = Path(__file__).parents[2]
VIEWERS = 50
PICTURE = join_annexb([b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80", b"\x65" + b"\x55" * 3000])


class Events:
    def __init__(self) -> None:
        self.live, self.over = asyncio.Event(), asyncio.Event()

    def connected(self) -> None:
        self.live.set()

    def lost(self) -> None:
        self.over.set()

    failed = relay_lost = lost

    def local_candidate(self, line: str | None) -> None: ...


class Stage:
    """A hub and its peers, with five pictures per second."""

    def __init__(self, *, own: bool, allowed: list[str], port: int = 3478, gather_timeout_s: float = 0.8) -> None:
        self.counters: Counter[str] = Counter()
        self.hub = Hub(self, time.monotonic, self.counters, dict.fromkeys(Quality, 1 / 30))
        settings = IceSettings(allowed_hosts=allowed, allowed_ports=[port], gather_timeout_s=gather_timeout_s)
        self.factory = PeerFactory(self.hub, settings, RtpSettings(), self.counters, frame_s=1 / 30)
        if not own:
            self.factory.stock_because = "the test says so"
        asyncio.get_running_loop().set_exception_handler(LoopErrors(self.counters).handle)

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...

    async def play(self) -> None:
        while True:
            self.hub.push(AccessUnit(PICTURE, time.monotonic_ns(), keyframe=True))
            await asyncio.sleep(0.2)

    async def answer(self, sdp: str, events: Events, servers: list[IceServer]) -> tuple[Peer, str]:
        peer, offer = self.factory(events, servers, Quality.HD), read_offer(sdp)
        stream = read_profile_level("42c01f")
        assert stream is not None
        choice = offer.choose(stream)
        await peer.accept(offer, choice)
        return peer, await peer.answer(offer, choice, trickle=False)


async def collected() -> None:
    """Collect garbage: asyncio reports tasks and futures that were left behind."""
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0.1)


async def killed(stage: Stage) -> list[tuple[Peer, Events]]:
    """Connect fifty viewers of another process, kill that, and return their peers."""
    command = [sys.executable, "-m", "tests.rigs.viewers_to_kill", str(VIEWERS)]
    viewers = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=-1, stdout=-1, limit=1 << 20)
    assert viewers.stdin is not None
    assert viewers.stdout is not None
    made = []
    for _ in range(VIEWERS):
        events = Events()
        peer, answer = await stage.answer(json.loads(await viewers.stdout.readline()), events, [])
        viewers.stdin.write(json.dumps(answer).encode() + b"\n")
        made.append((peer, events))
    for _, events in made:
        await events.live.wait()
    viewers.kill()
    await viewers.wait()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
async def test_fifty_killed_viewers_leave_at_most_two_log_lines_each(
    own: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A session logs two lines itself, so that peers may not log one line each."""
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.3)
    caplog.set_level(logging.INFO)
    for noisy in ("aiortc", "aioice"):
        caplog.set_level(logging.WARNING, noisy)  # as the daemon sets them
    async with asyncio.timeout(100):
        stage = Stage(own=own, allowed=[])
        playing = asyncio.create_task(stage.play())
        for peer, events in await killed(stage):
            await events.over.wait()
            await peer.close()
        playing.cancel()
        await collected()
    assert len(caplog.records) <= 5, caplog.text
    assert not stage.counters["loop_errors"]


@pytest.mark.slow
async def test_a_turn_server_that_died_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Aioice tries to free the relay for a minute; a close that is cancelled meanwhile would leave tasks behind."""
    monkeypatch.setattr("edge.streaming.peer._CLOSE_TIMEOUT_S", 0.2)
    coturn = Coturn("u", "p")
    coturn.start()
    try:
        stage = Stage(own=True, allowed=[coturn.host], port=coturn.port)
        url = f"turn:{coturn.host}:{coturn.port}"
        server = IceServer.model_validate({"urls": url, "username": "u", "credential": "p"})
        peers = []
        for _ in range(3):
            viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
            viewer.addTransceiver("video", direction="recvonly")
            await viewer.setLocalDescription(await viewer.createOffer())
            peer, answer = await stage.answer(viewer.localDescription.sdp, Events(), [server])
            assert "typ relay" in answer
            peers.append(peer)
            await viewer.close()
    finally:
        coturn.stop()
    monkeypatch.setattr("aioice.stun.RETRY_MAX", 3)
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.1)
    before = asyncio.all_tasks()
    async with asyncio.timeout(1.2):
        for peer in peers:
            await peer.close()
    del peer, peers
    async with asyncio.timeout(60):
        while asyncio.all_tasks() & before != {asyncio.current_task()}:
            await asyncio.sleep(0.1)
    await collected()
    assert caplog.text == ""


async def test_an_ice_server_that_does_not_answer_is_logged_once_for_all_viewers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(own=True, allowed=["192.0.2.250"], gather_timeout_s=0.05)
    server = IceServer(urls="stun:192.0.2.250:3478")
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    for _ in range(10):
        peer, _ = await stage.answer(viewer.localDescription.sdp, Events(), [server])
        await peer.close()
    await viewer.close()
    assert caplog.text.count("ICE server gave no candidate server='STUN 192.0.2.250'") == 1


async def test_errors_that_nothing_awaits_are_logged_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    counters: Counter[str] = Counter()
    asyncio.get_running_loop().set_exception_handler(LoopErrors(counters).handle)

    async def broken(number: int) -> None:
        await asyncio.sleep(0)
        if number:
            raise ConnectionError(f"viewer {number}")
        raise ZeroDivisionError

    def late() -> None:
        raise AttributeError("'NoneType' object has no attribute 'sendto'")

    for number in range(VIEWERS):
        task = asyncio.create_task(broken(number))
        asyncio.get_running_loop().call_later(0.001, late)
        await asyncio.wait({task})
        del task
    await asyncio.sleep(0.05)
    await collected()
    assert counters["loop_errors"] == 2 * VIEWERS
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    for words in ("exception was never retrieved", "Exception in callback", "ZeroDivisionError", "viewer "):
        assert words in caplog.text
