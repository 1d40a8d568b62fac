"""The session service with a scripted camera and scripted peers, and what its tests share."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.messages import AnswerBody, OfferBody
from edge.core.principal import EVERY_SCOPE, Interface, Principal, Scope
from edge.errors import CameraUnavailable, Rejected
from edge.host.state_file import StateFile
from edge.sessions.camera_requests import CameraRequests
from edge.sessions.desired_stream import DesiredStream
from edge.sessions.service import SessionService
from edge.sessions.settings import SessionSettings
from tests.service.fakes import FakeCamera, FakePeers, FakeStateStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.codes import Code, EndReason

OFFER = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
m=video 9 UDP/TLS/RTP/SAVPF 102
a=mid:0
a=recvonly
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuv
a=fingerprint:sha-256 AA:BB
a=setup:actpass
a=rtcp-mux
a=rtpmap:102 H264/90000
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
"""
CANDIDATE = "candidate:1 1 udp 2122260223 192.0.2.9 50000 typ host"
ANNA = Principal("anna", "bff-1", Interface.MQTT, EVERY_SCOPE - {Scope.MANAGE})
BORIS = Principal("boris", "bff-2", Interface.MQTT, EVERY_SCOPE - {Scope.MANAGE})
TECHNICIAN = Principal("technician", "127.0.0.1", Interface.LOCAL, EVERY_SCOPE)


class Rig:
    """The service with its camera, peers and listener."""

    def __init__(self, state: Path, **limits: Any) -> None:
        self.cam = FakeCamera()
        self.peers = FakePeers()
        self.events: list[tuple[str, str | None]] = []
        self.notified: list[tuple[str, str, Any]] = []
        self.counters: Counter[str] = Counter()
        self.desired = DesiredStream(limits.pop("stream_file", None) or StateFile(state / "stream.json"))
        idle_stop_s = limits.pop("idle_stop_s", 0.2)
        self.sessions = SessionService(
            SessionSettings(**limits),
            self.desired,
            self.cam,
            self.peers,
            idle_stop_s=idle_stop_s,
            now_s=asyncio.get_running_loop().time,
            on_change=lambda: None,
            publish_event=lambda kind, session, _: self.events.append((kind, session)),
            counters=self.counters,
        )
        self.store = FakeStateStore()
        self.requests = CameraRequests(
            self.sessions, self.cam, self.store, lambda kind, session, _: self.events.append((kind, session))
        )

    # The listener of every session.

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None:
        self.notified.append((session, owner.client, line))

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None:
        self.notified.append((session, owner.client, reason))

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None:
        self.notified.append((session, owner.client, error.message if error else "live"))

    async def open(self, owner: Principal = ANNA, **fields: Any) -> AnswerBody:
        return await self.sessions.open(OfferBody(sdp=OFFER, **fields), owner, self)

    def phases(self) -> list[str]:
        return [info.state for info in self.sessions.listing()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def code_of(call: Any) -> Code:
    with pytest.raises((Rejected, CameraUnavailable)) as caught:
        await call
    return caught.value.code
