"""Both senders, ours and aiortc's, with a real receiver: clean and lossy paths, wraps, both SRTP profiles."""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import random
import re
import threading
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aioice.ice import CandidatePair, StunProtocol, relayed_candidate
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcdtlstransport import SRTP_PROFILES

from edge.camera.port import Plan
from edge.camera.synthetic import SyntheticSource
from edge.core.access_unit import AccessUnit, Quality
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.streaming.aiortc_rtp import missing_for_own_sender
from edge.streaming.hub import Hub
from edge.streaming.peer import PeerFactory
from edge.streaming.rtp_sender import RtpSender
from edge.streaming.settings import IceSettings, RtpSettings
from edge.streaming.track_sender import TrackSender
from tests.rigs.coturn import Coturn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FPS = 30


class Events:
    def __init__(self) -> None:
        self.live = asyncio.Event()

    def connected(self) -> None:
        self.live.set()

    def lost(self) -> None: ...

    def relay_lost(self) -> None: ...

    def failed(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


class Receiver:
    """A real receiver, which decodes; some of the RTP packets that reach it are discarded.

    `sent`: the sequence numbers of the packets that were sent, by timestamp, in order. `got`: the sequence numbers that
    arrived, at first or by retransmission.
    """

    def __init__(self, profile: bytes) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.transceiver = self.pc.addTransceiver("video", direction="recvonly")
        self.transceiver.receiver.transport._srtp_profiles = [
            one for one in SRTP_PROFILES if profile in one.openssl_profile
        ]
        self.pts: list[int] = []
        self.discarded = 0
        self.sent: dict[int, set[int]] = {}
        self.got: set[int] = set()
        self.news = asyncio.Event()
        self.pc.on("track", lambda track: self._tasks.append(asyncio.create_task(self._see(track))))
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self) -> None:
        """Begin to discard and record. Call it after gathering and before the answer is applied."""
        chance, receiver = random.Random(7), self.transceiver.receiver
        protocols: Any = receiver.transport.transport._connection._protocols
        stock = receiver._handle_rtp_packet

        def receive(received: Any, data: bytes, address: Any) -> None:
            if 128 <= data[0] < 192 and not 192 <= data[1] < 224:
                first = False
                if data[1] & 0x7F == self.payload_type:
                    first = int.from_bytes(data[4:8], "big") not in self.sent
                    numbers = self.sent.setdefault(int.from_bytes(data[4:8], "big"), set())
                    numbers.add(int.from_bytes(data[2:4], "big"))
                if chance.random() < self.loss or (first and self.lose_each_first):
                    self.discarded += 1
                    return
            received(data, address)

        async def handled(packet: Any, arrival_time_ms: int) -> None:
            again = packet.payload_type != self.payload_type
            self.got.add(int.from_bytes(packet.payload[:2], "big") if again else packet.sequence_number)
            await stock(packet, arrival_time_ms)

        for protocol in protocols:
            protocol.datagram_received = functools.partial(receive, protocol.datagram_received)
        receiver._handle_rtp_packet = handled  # type: ignore[method-assign]

    payload_type, loss, lose_each_first = 0, 0.0, False

    def whole(self, keyframes: list[bool]) -> list[int]:
        """The relative timestamps of all pictures that arrived whole, with all those back to a keyframe."""
        found, intact = [], False
        first = next(iter(self.sent))
        for (timestamp, numbers), keyframe in zip(self.sent.items(), keyframes, strict=False):
            intact = (intact or keyframe) and numbers <= self.got
            if intact:
                found.append((timestamp - first) & 0xFFFFFFFF)
        return found

    async def frames(self, count: int) -> list[int]:
        """Wait for more decoded pictures and return their timestamps."""
        begun = len(self.pts)
        async with asyncio.timeout(40):
            while len(self.pts) < begun + count:
                self.news.clear()
                await self.news.wait()
        return self.pts[begun : begun + count]

    async def close(self) -> None:
        await self.pc.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _see(self, track: Any) -> None:
        try:
            while True:
                self.pts.append((await track.recv()).pts)
                self.news.set()
        except MediaStreamError:
            pass


class Stage:
    def __init__(self, *, own: bool, packet_bytes: int) -> None:
        self.counters: Counter[str] = Counter()
        self.source = SyntheticSource(Plan(640, 360, FPS, 50_000, 1_500_000), Plan(160, 120, FPS, 50_000, 100_000), 60)
        loop = asyncio.get_running_loop()
        self.hub = Hub(self.source, loop.time, self.counters, dict.fromkeys(Quality, 1 / FPS))
        self.keyframes: list[bool] = []
        """For each picture that was sent to the viewer: whether it is a keyframe."""

        def post(unit: AccessUnit) -> None:
            loop.call_soon_threadsafe(self.hub.push, unit)

        opening = self.source.start({}, post, lambda _: None)
        profile = read_profile_level(opening.format.profile_level_id)
        assert profile is not None
        self.profile = profile
        settings = RtpSettings(packet_bytes=packet_bytes)
        self.factory = PeerFactory(self.hub, IceSettings(), settings, self.counters, frame_s=1 / FPS)
        assert self.factory.stock_because is None
        if not own:
            self.factory.stock_because = "the test says so"


@asynccontextmanager
async def watching(
    *, own: bool, profile: bytes = b"GCM", sequence: int | None = None, packet_bytes: int = 1200, rtx: bool = True
) -> AsyncIterator[tuple[Stage, Receiver, Any]]:
    stage, receiver, events = Stage(own=own, packet_bytes=packet_bytes), Receiver(profile), Events()
    peer = stage.factory(events, [], Quality.HD)
    sender: Any = peer._sender
    if sequence is not None:
        sender._sequence = sequence
    push = sender.push

    def record(unit: AccessUnit, pts_90k: int) -> bool:
        queued: bool = push(unit, pts_90k)
        if queued and (stage.keyframes or unit.keyframe):
            stage.keyframes.append(unit.keyframe)
        return queued

    sender.push = record
    try:
        await receiver.pc.setLocalDescription(await receiver.pc.createOffer())
        receiver.listen()
        sdp = receiver.pc.localDescription.sdp
        offer = read_offer(sdp if rtx else re.sub(r"a=rtpmap:\d+ rtx/90000\r\n|a=fmtp:\d+ apt=\d+\r\n", "", sdp))
        choice = offer.choose(stage.profile)
        assert (choice.rtx_payload_type is not None) is rtx
        receiver.payload_type = choice.payload_type
        await peer.accept(offer, choice)
        answer = await peer.answer(offer, choice, trickle=False)
        await receiver.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(20):
            await events.live.wait()
        yield stage, receiver, sender
    finally:
        stage.source.stop()
        await peer.close()
        await receiver.close()


@pytest.mark.parametrize("profile", [b"GCM", b"AES128_CM"])
@pytest.mark.parametrize("own", [True, False])
async def test_on_a_clean_path_every_picture_arrives(own: bool, profile: bytes) -> None:
    async with watching(own=own, profile=profile) as (stage, receiver, sender):
        assert isinstance(sender, RtpSender) is own
        pts = await receiver.frames(60)
        steps = [later - earlier for earlier, later in itertools.pairwise(pts)]
        assert min(steps) > 0
        # No picture is missing: the median step is one frame time.
        assert sorted(steps)[len(steps) // 2] == pytest.approx(90_000 / FPS, rel=0.1)
        assert sender.dropped == 0
        assert not stage.counters["retransmissions"]


@pytest.mark.slow
@pytest.mark.parametrize("profile", [b"GCM", b"AES128_CM"])
@pytest.mark.parametrize("loss", [0.02, 0.1])
@pytest.mark.parametrize(("own", "rtx"), [(True, True), (True, False), (False, True)])
async def test_every_picture_that_arrives_whole_is_decoded(own: bool, rtx: bool, loss: float, profile: bytes) -> None:
    async with watching(own=own, profile=profile, rtx=rtx) as (stage, receiver, sender):
        await receiver.frames(5)
        receiver.loss = loss
        pts = await receiver.frames(120)
        assert sender.dropped == 0
        assert receiver.discarded > 10
        assert pts == sorted(pts)
        whole = [each for each in receiver.whole(stage.keyframes) if each <= pts[-1]]
        # Some packets were lost, and most arrived again.
        assert len(whole) > 60
        assert set(whole) <= set(receiver.pts)
        if own:
            assert stage.counters["retransmissions"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("profile", [b"GCM", b"AES128_CM"])
@pytest.mark.parametrize("rtx", [True, False])
async def test_pictures_are_repaired_by_retransmission(rtx: bool, profile: bytes) -> None:
    """Each picture loses its first packet once; the receiver requests it (NACK), and needs no keyframe."""
    async with watching(own=True, profile=profile, rtx=rtx) as (stage, receiver, _):
        await receiver.frames(5)
        before = stage.counters["keyframe_wishes"]
        receiver.lose_each_first = True
        await receiver.frames(60)
        receiver.lose_each_first = False
        assert receiver.discarded >= 50
        assert stage.counters["retransmissions"] >= 50
        assert stage.counters["keyframe_wishes"] - before <= 2, "hardly any picture needed a keyframe"


@pytest.mark.slow
@pytest.mark.parametrize("profile", [b"GCM", b"AES128_CM"])
@pytest.mark.parametrize("own", [True, False])
async def test_sequence_numbers_wrap(own: bool, profile: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = 65_450
    monkeypatch.setattr("aiortc.rtcrtpsender.random_sequence_number", lambda: begin)
    async with watching(own=own, profile=profile, sequence=begin) as (stage, receiver, _):
        await receiver.frames(5)
        receiver.loss = 0.05
        pts = await receiver.frames(90)
        numbers = [number for numbers in receiver.sent.values() for number in numbers]
        assert max(numbers) > 65_500
        assert 0 < min(numbers) < 1000 or 0 in numbers
        assert {each for each in receiver.whole(stage.keyframes) if each <= pts[-1]} <= set(receiver.pts)


@pytest.mark.slow
async def test_large_packets_are_sent_again() -> None:
    async with watching(own=True, packet_bytes=1400) as (stage, receiver, _):
        await receiver.frames(5)
        receiver.loss = 0.05
        await receiver.frames(60)
        assert stage.counters["retransmissions"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_packets_are_sent_through_a_relay(transport: str) -> None:
    coturn = Coturn("u", "p")
    coturn.start()
    try:
        async with watching(own=True) as (stage, receiver, sender):
            await receiver.frames(5)
            theirs: Any = receiver.transceiver.receiver.transport.transport._connection
            ours: Any = sender._path._dtls.transport._connection
            _, protocol = await relayed_candidate(
                component=1,
                hide_related_address=False,
                protocol_factory=lambda: StunProtocol(ours),
                turn_server=(coturn.host, coturn.port),
                turn_username="u",
                turn_password="p",
                turn_ssl=False,
                turn_transport=transport,
            )
            ours._protocols.append(protocol)
            address = next(each for each in theirs._local_candidates if each.host == coturn.host)
            # Bind the channel, as the connectivity checks do.
            await protocol.send_data(bytes(4), (address.host, address.port))
            await asyncio.sleep(0.3)
            before = stage.counters.copy()
            ours._nominated[1] = CandidatePair(protocol, address)
            await receiver.frames(60)
            assert sender._path.socket is None
            for name in ("frames_cut", "datagrams_failed", "segmentation_refused", "sender_bugs"):
                assert stage.counters[name] == before[name]
    finally:
        coturn.stop()


@pytest.mark.slow
async def test_sender_reports_arrive() -> None:
    async with watching(own=True) as (_, receiver, _):
        await receiver.frames(90)
        stats = await receiver.transceiver.receiver.getStats()
        sent = [entry for entry in stats.values() if entry.type == "remote-outbound-rtp"]
        got = [entry for entry in stats.values() if entry.type == "inbound-rtp"]
        assert sent
        assert got
        assert 0 < sent[0].packetsSent <= got[0].packetsReceived + 20


@pytest.mark.slow
async def test_after_a_full_socket_the_viewer_continues_at_a_keyframe() -> None:
    async with watching(own=True) as (stage, receiver, sender):
        await receiver.frames(10)
        real, refusals = sender._path.socket, 3

        class Full:
            def sendmsg(self, *given: Any) -> int:
                nonlocal refusals
                if refusals:
                    refusals -= 1
                    raise BlockingIOError(errno.EAGAIN, "full")
                return int(real.sendmsg(*given))

            def sendto(self, *given: Any) -> int:
                return self.sendmsg([given[0]], [], 0, given[1])

        sender._path.socket = Full()
        await receiver.frames(60)
        assert refusals == 0
        assert stage.counters["frames_cut"] == 3


@pytest.mark.slow
async def test_without_segmentation_packets_are_sent_one_by_one() -> None:
    async with watching(own=True) as (stage, receiver, sender):
        await receiver.frames(10)
        real = sender._path.socket

        class Plain:
            def sendmsg(self, *given: Any) -> int:
                raise OSError(22, "Invalid argument")

            def sendto(self, *given: Any) -> int:
                return int(real.sendto(*given))

        sender._path.socket = Plain()
        pts = await receiver.frames(60)
        assert pts == sorted(pts)
        assert stage.counters["segmentation_refused"] == 1
        assert not stage.counters["frames_cut"]


async def test_late_pictures_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With a busy thread in the process, each system call waits for the GIL."""
    async with watching(own=True) as (stage, receiver, _):
        await receiver.frames(30)
        quiet, over = stage.counters["late_frames"], threading.Event()

        def compute() -> None:
            while not over.is_set():
                sum(range(1000))

        threads = [threading.Thread(target=compute) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            async with asyncio.timeout(60):
                while stage.counters["late_frames"] < quiet + 3:
                    await asyncio.sleep(0.1)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert "is the CPU overloaded?" in caplog.text


async def test_if_a_private_part_is_missing_the_stock_sender_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_for_own_sender() is None
    monkeypatch.delattr(RTCRtpSender, "_retransmit")
    assert missing_for_own_sender() == "RTCRtpSender._retransmit"
    counters: Counter[str] = Counter()
    source = SyntheticSource(Plan(320, 240, FPS, 50_000, 300_000), Plan(160, 120, FPS, 50_000, 100_000), 10)
    hub = Hub(source, lambda: 0.0, counters, dict.fromkeys(Quality, 1 / FPS))
    factory = PeerFactory(hub, IceSettings(), RtpSettings(), counters, frame_s=1 / FPS)
    assert factory.stock_because == "RTCRtpSender._retransmit"
    peer: Any = factory(Events(), [], Quality.HD)
    assert isinstance(peer._sender, TrackSender)
    await peer.close()
