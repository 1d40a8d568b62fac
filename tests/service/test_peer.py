"""Peers with real aiortc viewers over loopback sockets, and ICE servers with a real coturn."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from edge.camera.port import Plan
from edge.camera.synthetic import SyntheticSource
from edge.contract.messages import IceServer
from edge.core.access_unit import AccessUnit, Quality
from edge.core.candidate import read_candidate
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected
from edge.streaming.hub import Hub
from edge.streaming.peer import PeerFactory
from edge.streaming.settings import IceSettings, RtpSettings
from tests.rigs.coturn import Coturn
from tests.rigs.go_program import PION_VIEWER, build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from edge.streaming.peer import Peer


class Events:
    def __init__(self) -> None:
        self.candidates: list[str | None] = []
        self.live = asyncio.Event()
        self.gone = asyncio.Event()
        self.relay_gone = asyncio.Event()
        self.broken = asyncio.Event()
        self.gathered = asyncio.Event()

    def connected(self) -> None:
        self.live.set()

    def lost(self) -> None:
        self.gone.set()

    def relay_lost(self) -> None:
        self.relay_gone.set()

    def failed(self) -> None:
        self.broken.set()

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
    def __init__(self, *, own: bool) -> None:
        self.own = own
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
        factory = PeerFactory(self.hub, settings, RtpSettings(), self.counters, frame_s=1 / 30)
        if not self.own:
            factory.stock_because = "the test says so"
        return factory

    async def answer(self, events: Events, sdp: str, servers: list[IceServer], **options: Any) -> tuple[Peer, str]:
        trickle = options.pop("trickle")
        allowed = {"allowed_hosts": options.pop("allowed", []), "allowed_ports": options.pop("ports", [])}
        settings = IceSettings(**allowed, **options)
        peer = self.factory(settings)(events, servers, Quality.HD)
        offer = read_offer(sdp)
        assert self.profile is not None
        choice = offer.choose(self.profile)
        await peer.accept(offer, choice)
        return peer, await peer.answer(offer, choice, trickle=trickle)


@asynccontextmanager
async def stage(*, own: bool = True) -> AsyncIterator[Stage]:
    made = Stage(own=own)
    try:
        yield made
    finally:
        made.source.stop()


async def test_viewers_get_pictures_while_another_one_leaves() -> None:
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


@pytest.mark.parametrize("own", [True, False])
async def test_a_sender_that_ends_by_itself_ends_its_session_at_once(own: bool) -> None:
    async with stage(own=own) as on, asyncio.timeout(30):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
        await viewer.take(answer)
        await viewer.pts.get()
        engine: Any = peer._rtp
        engine._RTCRtpSender__rtp_task.cancel()
        await events.broken.wait()
        assert not events.gone.is_set()
        assert peer._pc.connectionState == "connected"
        assert on.hub.quality_of(peer._sender) is None
        await peer.close()
        await viewer.pc.close()


async def test_a_track_that_the_engine_cannot_pack_ends_its_session_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage(own=False) as on, asyncio.timeout(30):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
        await viewer.take(answer)
        await viewer.pts.get()
        peer._sender.push(AccessUnit(b"\0\0\0\1\x65", 0, keyframe=True), 2**80)
        await events.broken.wait()
        assert "sending ended although the connection is up" in caplog.text
        await peer.close()
        await viewer.pc.close()


@pytest.mark.parametrize("own", [True, False])
async def test_a_viewer_that_closes_is_reported_as_lost(own: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(own=own) as on, asyncio.timeout(30):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
        await viewer.take(answer)
        await viewer.pts.get()
        await viewer.pc.close()
        await events.gone.wait()
        await peer.close()
        assert not events.broken.is_set()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_quality_that_is_chosen_before_the_connection_is_the_first_that_is_sent() -> None:
    async with stage() as on, asyncio.timeout(30):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
        await peer.switch(Quality.SD)
        await viewer.take(answer)
        await events.live.wait()
        assert on.hub.quality_of(peer._sender) is Quality.SD
        await peer.close()
        await viewer.pc.close()


async def test_candidates_may_follow_the_answer() -> None:
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


def hosts_of(peer: Peer) -> list[str]:
    return [candidate.host for candidate in peer._agent._connection.remote_candidates]


@pytest.mark.parametrize("allow_loopback", [False, True])
async def test_loopback_is_left_out_unless_it_is_allowed(allow_loopback: bool) -> None:
    async with stage() as on:
        viewer = Viewer()
        own = "a=candidate:9 1 udp 2122260223 {} 50000 typ host\r\n"
        bare = "".join(line for line in (await viewer.offer()).splitlines(keepends=True) if "candidate" not in line)
        peer, _ = await on.answer(
            Events(),
            bare + own.format("127.0.0.2") + own.format("192.0.2.9"),
            [],
            trickle=True,
            allow_loopback=allow_loopback,
        )
        assert hosts_of(peer) == ["127.0.0.2"] * allow_loopback + ["192.0.2.9"]
        late = read_candidate(own.format("::1").strip())
        assert late is not None
        assert await peer.add_candidate(late) is allow_loopback
        assert ("::1" in hosts_of(peer)) is allow_loopback
        await peer.close()
        await viewer.pc.close()


async def test_link_local_is_left_out_unless_the_agent_is_in_that_network() -> None:
    async with stage() as on:
        viewer = Viewer()
        peer, _ = await on.answer(Events(), await viewer.offer(), [], trickle=True)
        line = "candidate:9 1 udp 2122260223 {} 50000 typ host"
        candidates = [read_candidate(line.format(host)) for host in ("169.254.7.7", "fe80::7", "192.0.2.9")]
        assert [candidate and await peer.add_candidate(candidate) for candidate in candidates] == [False, False, True]
        peer._agent._connection._local_candidates[0].host = "169.254.1.1"
        assert [candidate and await peer.add_candidate(candidate) for candidate in candidates] == [True, False, True]
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
        deadlines = {"gather_timeout_s": 0.2, "relay_timeout_s": 0.4}
        late, answer = await on.answer(
            events, await viewer.offer(), dead, trickle=False, allowed=["192.0.2.250"], **deadlines
        )
        assert asyncio.get_running_loop().time() - started_s < 1.5
        assert "a=end-of-candidates" in answer
        await late.close()
        await viewer.pc.close()


async def test_an_offer_is_accepted_without_its_servers_and_its_peer_closes_while_it_gathers() -> None:
    async with stage() as on, asyncio.timeout(10):
        assert on.profile is not None
        viewer = Viewer()
        offer = read_offer(await viewer.offer())
        dead = [IceServer(urls="stun:192.0.2.250:3478")]
        settings = IceSettings(allowed_hosts=["192.0.2.250"], gather_timeout_s=3)
        peer = on.factory(settings)(Events(), dead, Quality.HD)
        await peer.accept(offer, offer.choose(on.profile))
        answering = asyncio.create_task(peer.answer(offer, offer.choose(on.profile), trickle=False))
        await asyncio.sleep(0.1)
        assert not answering.done(), "it waits for the server"
        await peer.close()
        assert "a=candidate" in await answering
        await viewer.pc.close()


async def test_stun_and_turn_candidates_are_trickled_or_in_the_answer() -> None:
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
        options = {"allowed": [server.host], "ports": [9, server.port]}
        async with stage() as on, asyncio.timeout(30):
            viewer, events = Viewer(), Events()
            bare = "".join(line for line in (await viewer.offer()).splitlines(keepends=True) if "candidate" not in line)
            peer, answer = await on.answer(events, bare, servers, trickle=True, **options)
            assert "typ relay" not in answer
            await events.gathered.wait()
            kinds = {line.split(" typ ")[1].split()[0] for line in events.candidates if line}
            assert kinds == {"srflx", "relay"}
            await peer.close()
            peer, answer = await on.answer(events, bare, servers, trickle=False, **options)
            assert "typ relay" in answer
            assert "typ srflx" in answer
            await peer.close()
            await viewer.pc.close()


async def watch_with_pion(program: Path, *options: str) -> None:
    """Answer the offer of a pion viewer, and wait until it has received video."""
    viewer = await asyncio.create_subprocess_exec(
        program, *options, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert viewer.stdin is not None
    assert viewer.stdout is not None
    try:
        async with stage() as on, asyncio.timeout(20):
            offered = json.loads(await viewer.stdout.readline())["sdp"]
            assert [line.split()[0] for line in offered.splitlines() if line.startswith("m=")] == [
                "m=audio",
                "m=video",
                "m=application",
            ]
            peer, answer = await on.answer(Events(), offered, [], trickle=False)
            viewer.stdin.write(json.dumps({"type": "answer", "sdp": answer}).encode() + b"\n")
            assert await viewer.stdout.readline() == b"RECEIVED\n"
            await peer.close()
    finally:
        if viewer.returncode is None:
            viewer.kill()
        await viewer.communicate()


@pytest.fixture(scope="module")
def pion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PION_VIEWER, tmp_path_factory.mktemp("pion"))


@pytest.mark.slow
async def test_a_pion_viewer_with_audio_and_a_data_channel_gets_video(pion: Path) -> None:
    await watch_with_pion(pion)


@pytest.mark.slow
async def test_an_ice_lite_client_gets_video(pion: Path) -> None:
    await watch_with_pion(pion, "-lite")


async def test_a_closed_peer_rejects_an_offer() -> None:
    async with stage() as on:
        viewer, events = Viewer(), Events()
        sdp = await viewer.offer()
        peer = on.factory(IceSettings())(events, [], Quality.HD)
        await peer.close()
        offer = read_offer(sdp)
        assert on.profile is not None
        with pytest.raises(Rejected):
            await peer.accept(offer, offer.choose(on.profile))
        await viewer.pc.close()


@contextmanager
def coturn() -> Iterator[Coturn]:
    server = Coturn("u", "p")
    server.start()
    try:
        yield server
    finally:
        server.stop()
