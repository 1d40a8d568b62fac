"""Peers against a real aiortc viewer over loopback sockets, and ICE servers against a real coturn."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from edge.camera.port import Plan
from edge.camera.synthetic import SyntheticSource
from edge.contract.codes import Code
from edge.contract.messages import IceServer
from edge.core.access_unit import AccessUnit, Quality
from edge.core.candidate import read_candidate
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected
from edge.streaming.hub import Hub
from edge.streaming.ice_servers import read_ice_servers
from edge.streaming.peer import PeerFactory
from edge.streaming.settings import IceSettings, RtpSettings
from tests.rigs.coturn import Coturn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from edge.streaming.peer import Peer


class Events:
    def __init__(self) -> None:
        self.candidates: list[str | None] = []
        self.live = asyncio.Event()
        self.gone = asyncio.Event()
        self.gathered = asyncio.Event()

    def connected(self) -> None:
        self.live.set()

    def lost(self) -> None:
        self.gone.set()

    def local_candidate(self, line: str | None) -> None:
        self.candidates.append(line)
        if line is None:
            self.gathered.set()


class Viewer:
    """A real receiver."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver("video", direction="recvonly")
        self.pts: asyncio.Queue[int] = asyncio.Queue()
        self.pc.on("track", lambda track: tasks.append(asyncio.create_task(self._pump(track))))
        tasks: list[asyncio.Task[None]] = []

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def take(self, answer: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def _pump(self, track: Any) -> None:
        try:
            while True:
                self.pts.put_nowait((await track.recv()).pts)
        except MediaStreamError:
            pass


class Stage:
    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.source = SyntheticSource(Plan(320, 240, 30, 50_000, 300_000), Plan(160, 120, 30, 50_000, 100_000), 10)
        self.hub = Hub(self.source, asyncio.get_running_loop().time, self.counters, dict.fromkeys(Quality, 1 / 30))
        loop = asyncio.get_running_loop()

        def post(unit: AccessUnit) -> None:
            loop.call_soon_threadsafe(self.hub.push, unit)

        self.format = self.source.start({}, post, lambda _: None).format
        self.profile = read_profile_level(self.format.profile_level_id)
        assert self.profile is not None

    def factory(self, settings: IceSettings) -> PeerFactory:
        return PeerFactory(self.hub, settings, RtpSettings(), self.counters, frame_s=1 / 30)

    async def answer(self, events: Events, sdp: str, servers: list[IceServer], **options: Any) -> tuple[Peer, str]:
        settings = IceSettings(allowed_hosts=options.pop("allowed", []), gather_timeout_s=0.8)
        peer = self.factory(settings)(events, servers, Quality.HD)
        offer = read_offer(sdp)
        assert self.profile is not None
        return peer, await peer.answer(offer, offer.choose(self.profile), **options)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    try:
        yield made
    finally:
        made.source.stop()


async def test_two_viewers_see_pictures_that_advance_and_a_third_leaves_alone() -> None:
    async with stage() as on, asyncio.timeout(30):
        viewers = [Viewer() for _ in range(3)]
        peers = []
        for viewer in viewers:
            events = Events()
            peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
            await viewer.take(answer)
            await events.live.wait()
            peers.append((peer, events))
        for viewer in viewers:
            first = await viewer.pts.get()
            assert await viewer.pts.get() > first
        await viewers[2].pc.close()
        await peers[2][1].gone.wait()
        while not viewers[0].pts.empty():
            viewers[0].pts.get_nowait()
        assert await viewers[0].pts.get()
        sent, _ = await peers[0][0].stats()
        assert sent > 0
        assert peers[0][0].path == "host/host"
        assert on.counters["keyframe_requests"] <= on.counters["keyframe_wishes"]
        for peer, _ in peers:
            await peer.close()
            await peer.close()
        for viewer in viewers:
            await viewer.pc.close()


async def test_candidates_may_come_after_the_answer() -> None:
    async with stage() as on, asyncio.timeout(30):
        viewer, events = Viewer(), Events()
        lines = (await viewer.offer()).splitlines(keepends=True)
        bare = "".join(line for line in lines if "candidate" not in line)
        peer, answer = await on.answer(events, bare, [], trickle=True)
        await viewer.take("".join(line for line in answer.splitlines(keepends=True) if "candidate" not in line))
        for line in lines:
            if line.startswith("a=candidate:") and (candidate := read_candidate(line.strip())):
                await peer.add_candidate(candidate)
        await events.live.wait()
        assert await viewer.pts.get() is not None
        await peer.close()
        await viewer.pc.close()


async def test_an_unreachable_stun_or_turn_server_does_not_delay_a_trickled_answer() -> None:
    dead = [
        IceServer(urls="stun:192.0.2.250:3478"),
        IceServer.model_validate({"urls": "turn:192.0.2.250:3478", "username": "u", "credential": "p"}),
    ]
    async with stage() as on:
        viewer, events = Viewer(), Events()
        started_s = asyncio.get_running_loop().time()
        peer, answer = await on.answer(events, await viewer.offer(), dead, trickle=True, allowed=["192.0.2.250"])
        assert asyncio.get_running_loop().time() - started_s < 0.7
        assert "end-of-candidates" not in answer
        await peer.close()
        late, answer = await on.answer(events, await viewer.offer(), dead, trickle=False, allowed=["192.0.2.250"])
        assert asyncio.get_running_loop().time() - started_s < 3
        assert "a=end-of-candidates" in answer
        await late.close()
        await viewer.pc.close()


async def test_stun_and_turn_candidates_are_trickled_or_in_the_answer_and_turn_urls_are_tried_in_order() -> None:
    with coturn() as server:
        servers = [
            IceServer(urls=f"stun:{server.host}:{server.port}"),
            IceServer.model_validate(
                {
                    "urls": [f"turn:{server.host}:9?transport=tcp", f"turn:{server.host}:{server.port}?transport=udp"],
                    "username": "u",
                    "credential": "p",
                },
            ),
        ]
        async with stage() as on, asyncio.timeout(30):
            viewer, events = Viewer(), Events()
            bare = "".join(line for line in (await viewer.offer()).splitlines(keepends=True) if "candidate" not in line)
            peer, answer = await on.answer(events, bare, servers, trickle=True, allowed=[server.host])
            assert "typ relay" not in answer
            await events.gathered.wait()
            kinds = {line.split(" typ ")[1].split()[0] for line in events.candidates if line}
            assert kinds == {"srflx", "relay"}
            await peer.close()
            peer, answer = await on.answer(events, bare, servers, trickle=False, allowed=[server.host])
            assert "typ relay" in answer
            assert "typ srflx" in answer
            await peer.close()
            await viewer.pc.close()


async def test_a_peer_closed_while_it_answers_refuses_and_leaks_no_task() -> None:
    async with stage() as on:
        viewer, events = Viewer(), Events()
        sdp = await viewer.offer()
        peer = on.factory(IceSettings())(events, [], Quality.HD)
        await peer.close()
        offer = read_offer(sdp)
        assert on.profile is not None
        with pytest.raises(Rejected):
            await peer.answer(offer, offer.choose(on.profile), trickle=True)
        await viewer.pc.close()


@pytest.mark.parametrize(
    ("server", "code"),
    [
        ({"urls": "turn:evil.example:3478", "username": "u", "credential": "hunter2"}, Code.FORBIDDEN),
        ({"urls": "turn:turn.example"}, Code.BAD_MESSAGE),
        ({"urls": "http://turn.example"}, Code.BAD_MESSAGE),
        ({"urls": "stun:turn.example:99999"}, Code.BAD_MESSAGE),
    ],
)
def test_ice_servers_that_are_refused(server: dict[str, Any], code: Code) -> None:
    with pytest.raises(Rejected) as caught:
        read_ice_servers([IceServer.model_validate(server)], ["turn.example"])
    assert caught.value.code is code
    assert "hunter2" not in caught.value.message


def test_turn_urls_are_ordered_udp_tcp_tls() -> None:
    urls = ["turns:t.example?transport=tcp", "turn:t.example?transport=tcp", "turn:t.example", "stun:t.example"]
    server = IceServer.model_validate({"urls": urls, "username": "u", "credential": "p"})
    servers = read_ice_servers([server], ["t.example"])
    assert [(turn.transport, turn.tls, turn.port) for turn in servers.turn] == [
        ("udp", False, 3478),
        ("tcp", False, 3478),
        ("tcp", True, 5349),
    ]
    assert len(servers.stun) == 1


@contextmanager
def coturn() -> Iterator[Coturn]:
    server = Coturn("u", "p")
    server.start()
    try:
        yield server
    finally:
        server.stop()
