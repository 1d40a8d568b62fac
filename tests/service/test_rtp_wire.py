"""What a sender sends, byte by byte, and how a slow viewer affects the others."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aioice.candidate import Candidate as IceCandidate
from aioice.ice import Connection, StunProtocol

from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import join_annexb
from edge.streaming.aiortc_rtp import missing_for_own_sender
from edge.streaming.hub import Hub
from edge.streaming.packets import Packetizer
from edge.streaming.peer import OVERHEAD_BYTES
from edge.streaming.rtp_sender import HeaderExtension, RtpSender
from tests.rigs.wire import CM, GCM, RTX, RTX_SSRC, SSRC, VIDEO, Wire, pictures

if TYPE_CHECKING:
    from collections.abc import Callable

SPS, PPS = b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80"
FRAME_S = 1 / 30
EXTENSIONS = {
    HeaderExtension.MID: 1,
    HeaderExtension.ABS_SEND_TIME: 2,
    HeaderExtension.PLAYOUT_DELAY: 3,
    HeaderExtension.ABS_CAPTURE_TIME: 4,
}


def unit(size: int, *, keyframe: bool, number: int = 1) -> AccessUnit:
    chance = random.Random(number)
    body = bytes(chance.randrange(1, 256) for _ in range(size))
    nals = [SPS, PPS, b"\x65" + body] if keyframe else [b"\x41" + body]
    return AccessUnit(join_annexb(nals), time.monotonic_ns() + number, keyframe)


class Stage:
    """One sender with its wire."""

    def __init__(self, wire: Wire, packet_bytes: int = 1200) -> None:
        self.wire = wire
        self.counters: Counter[str] = Counter()
        self.sender = RtpSender(
            Packetizer(packet_bytes - OVERHEAD_BYTES, self.counters), self.counters, frame_s=FRAME_S
        )
        self.sender._sequence, self.sender._timestamp_base = 65_530, 0
        self.sender.connect(wire.path)
        self.pts_90k = 0

    async def send(self, *units: AccessUnit) -> list[bool]:
        """Push these one after the other, and wait until each was sent."""
        queued = []
        for each in units:
            self.pts_90k += 3000
            queued.append(self.sender.push(each, self.pts_90k))
            async with asyncio.timeout(10):
                while self.sender._timer is not None:
                    await asyncio.sleep(0.005)
        return queued


UNITS = [unit(70_000, keyframe=True), *(unit(size, keyframe=False, number=size) for size in (16_000, 300, 1141, 2281))]


@pytest.mark.parametrize("profile", [GCM, CM])
@pytest.mark.parametrize("packet_bytes", [500, 1200, 1400])
async def test_every_packet_fits_and_every_picture_arrives(packet_bytes: int, profile: bytes) -> None:
    stage = Stage(Wire(profile, EXTENSIONS), packet_bytes)
    assert await stage.send(*UNITS) == [True] * len(UNITS)
    assert max(map(len, stage.wire.datagrams)) <= packet_bytes
    packets = stage.wire.rtp()
    assert {(packet.payload_type, packet.ssrc) for packet in packets} == {(VIDEO, SSRC)}
    # Across the wrap of the sequence numbers.
    assert [packet.sequence_number for packet in packets] == [(65_530 + at) & 0xFFFF for at in range(len(packets))]
    assert sorted({packet.timestamp for packet in packets}) == [3000 * (at + 1) for at in range(len(UNITS))]
    assert pictures(packets) == [each.payload for each in UNITS]
    assert not stage.counters


async def test_the_same_bytes_are_sent_in_batches_one_by_one_and_through_a_relay() -> None:
    fixed = {HeaderExtension.MID: 1, HeaderExtension.PLAYOUT_DELAY: 3}
    runs, plain, relayed = (Stage(wire) for wire in (Wire(GCM, fixed), Wire(GCM, fixed), Wire(GCM, fixed, relay=True)))
    assert plain.wire.path.refresh()
    plain.wire.path.segmentation = False
    small = unit(100, keyframe=True)
    sent = []
    for stage in (runs, plain, relayed):
        await stage.send(small, *UNITS)
        sent.append([each for each in stage.wire.datagrams if each[1] & 0x7F == VIDEO])
    assert sent[0] == sent[1] == sent[2]
    # A keyframe is sent in chunks.
    assert runs.wire.calls < plain.wire.calls / 2


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOPROTOOPT])
async def test_a_kernel_without_segmentation_is_noticed_once_per_path(number: int) -> None:
    wire = Wire()
    stage = Stage(wire)
    real = wire.sendmsg

    def refuse(*_: Any) -> None:
        raise OSError(number, "no")

    wire.sendmsg = refuse  # type: ignore[method-assign,assignment]
    await stage.send(*UNITS)
    assert stage.counters == {"segmentation_refused": 1}
    assert pictures(wire.rtp()) == [each.payload for each in UNITS]
    assert not wire.path.segmentation
    wire.sendmsg = real  # type: ignore[method-assign]
    pair: Any = wire.nominated[1]
    wire.nominated[1] = type(pair)(**vars(pair))
    assert wire.path.refresh()
    assert wire.path.segmentation


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_a_full_socket_drops_the_rest_of_the_picture_and_waits_for_a_keyframe(number: int) -> None:
    wire = Wire()
    stage = Stage(wire)
    first, lost, after, again = (
        unit(16_000, keyframe=keyframe, number=at) for at, keyframe in enumerate((True, False, False, True))
    )
    await stage.send(first)
    wire.refusal = OSError(number, "full")
    assert await stage.send(lost) == [True]
    wire.refusal = None
    assert await stage.send(after) == [False], "it needs a keyframe"
    assert await stage.send(again) == [True]
    assert stage.counters == {"frames_cut": 1}
    packets = wire.rtp()
    assert pictures(packets) == [first.payload, again.payload]
    numbers = [packet.sequence_number for packet in packets]
    gaps = [(later - earlier) & 0xFFFF for earlier, later in itertools.pairwise(numbers)]
    assert sorted(gaps)[-2:] == [1, 16], "the lost picture's numbers are missing: the receiver knows"
    # A packet that was never sent is not sent again.
    stage.sender.retransmit((numbers[gaps.index(16)] + 1) & 0xFFFF)
    assert stage.counters["retransmissions"] == 0
    assert stage.counters["packets_not_resent"] == 1


async def test_a_lost_packet_is_sent_again_at_most_once_per_interval() -> None:
    wire = Wire(GCM, EXTENSIONS)
    stage = Stage(wire)
    await stage.send(unit(16_000, keyframe=True))
    count = len(wire.datagrams)
    for _ in range(3):
        stage.sender.retransmit(65_533)
    assert (stage.counters["retransmissions"], stage.counters["packets_not_resent"]) == (1, 2)
    await asyncio.sleep(0.06)
    stage.sender.retransmit(65_533)
    *sent, first, second = wire.rtp()
    assert len(wire.datagrams) == count + 2
    original = next(packet for packet in sent if packet.sequence_number == 65_533)
    for packet in (first, second):
        assert (packet.payload_type, packet.ssrc, packet.timestamp) == (RTX, RTX_SSRC, original.timestamp)
        assert packet.payload == (65_533).to_bytes(2, "big") + original.payload
    assert (second.sequence_number - first.sequence_number) & 0xFFFF == 1
    # With a long round-trip time, the packet may still be on its way.
    wire.sender._RTCRtpSender__rtt = 5.0
    await asyncio.sleep(0.06)
    stage.sender.retransmit(65_533)
    assert stage.counters["retransmissions"] == 2


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("profile", [GCM, CM])
async def test_without_rtx_a_lost_packet_is_sent_again_as_it_was(profile: bytes, relay: bool) -> None:
    wire = Wire(profile, EXTENSIONS, relay=relay, rtx=False)
    stage = Stage(wire)
    await stage.send(unit(16_000, keyframe=True), unit(3000, keyframe=False))
    lost = [wire.datagrams.pop(at) for at in (15, 3, 0)]
    before = len(wire.datagrams)
    for datagram in lost:
        stage.sender.retransmit(int.from_bytes(datagram[2:4], "big"))
    assert wire.datagrams[before:] == lost
    stage.sender.retransmit(int.from_bytes(lost[0][2:4], "big"))
    assert (stage.counters["retransmissions"], stage.counters["packets_not_resent"]) == (3, 1)
    packets = wire.rtp()
    assert {(packet.payload_type, packet.ssrc) for packet in packets} == {(VIDEO, SSRC)}
    packets.sort(key=lambda packet: (packet.sequence_number - 65_530) & 0xFFFF)
    assert len(pictures(packets)) == 2, "a receiver's replay check accepts the packets"


async def test_retransmissions_are_limited_per_second() -> None:
    stage = Stage(Wire(rtx=False))
    for _ in range(10):
        await stage.send(unit(100_000, keyframe=True))
    lost = [int.from_bytes(datagram[2:4], "big") for datagram in stage.wire.datagrams]
    stage.sender._pacer = type("Pacer", (), {"may_resend": lambda *_: True, "sent": lambda *_: None})()
    for sequence in lost:
        stage.sender.retransmit(sequence)
    assert 0 < stage.counters["retransmissions"] <= 400
    assert stage.counters["packets_not_resent"] > 100


async def test_without_rtx_a_packet_that_is_too_old_for_srtp_is_not_sent_again() -> None:
    wire = Wire(rtx=False)
    stage = Stage(wire)
    await stage.send(*(unit(100_000, keyframe=True) for _ in range(13)))
    old, recent = (int.from_bytes(wire.datagrams[at][2:4], "big") for at in (0, -1))
    count = len(wire.datagrams)
    assert count > 1024
    stage.sender.retransmit(old)
    stage.sender.retransmit(recent)
    assert wire.datagrams[count:] == [wire.datagrams[count - 1]]
    assert stage.counters == {"retransmissions": 1, "packets_not_resent": 1}


async def test_a_viewer_that_requests_everything_again_gets_no_second_stream() -> None:
    wire = Wire()
    stage = Stage(wire)
    await stage.send(unit(100_000, keyframe=True))
    count = len(wire.datagrams)
    for sequence in range(65_530, 65_536):
        stage.sender.retransmit(sequence)
    for sequence in range(300):
        stage.sender.retransmit(sequence)
    resent = sum(map(len, wire.datagrams[count:]))
    assert 10_000 < resent < 60_000
    assert stage.counters["packets_not_resent"] > 200


@pytest.mark.slow
async def test_reports_contain_what_was_sent_and_when_it_was_captured() -> None:
    wire = Wire(GCM, EXTENSIONS)
    stage = Stage(wire)
    wall_s = time.time() - time.monotonic()
    captured_s: dict[int, float] = {}
    for number in range(70):
        picture = unit(3000, keyframe=number == 0, number=number)
        await stage.send(picture)
        captured_s[stage.pts_90k] = wall_s + picture.captured_ns / 1e9
        await asyncio.sleep(FRAME_S)
    reports = wire.reports()
    assert 2 <= len(reports) <= 7
    kinds = [200 <= datagram[1] < 208 for datagram in wire.datagrams]
    packets = wire.rtp()
    at = -1
    for report in reports:
        at = kinds.index(True, at + 1)
        before = packets[: at - sum(kinds[:at])]
        info = report.sender_info
        assert info.packet_count == len(before)
        assert info.octet_count == sum(len(packet.payload) for packet in before)
        assert info.rtp_timestamp == before[-1].timestamp
        assert info.ntp_timestamp / 2**32 - 2_208_988_800 == pytest.approx(captured_s[info.rtp_timestamp], abs=0.01)


async def test_a_bug_ends_only_this_viewer(caplog: pytest.LogCaptureFixture) -> None:
    audience = Audience(None, None, None)
    await audience.play(0.2)
    senders, wires = [sender for sender, _, _ in audience.viewers], [wire for _, wire, _ in audience.viewers]
    failures: list[RtpSender] = []

    def failed() -> None:
        failures.append(senders[1])
        audience.hub.leave(senders[1])

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    senders[1].ended = failed
    wires[1].path.protect = broken  # type: ignore[method-assign,assignment]
    await audience.play(0.5)
    assert failures == [senders[1]]
    assert audience.counters["sender_bugs"] == 1
    assert "sender failed because of a bug" in caplog.text
    async with asyncio.timeout(10):
        while any(sender._timer is not None for sender in senders):
            await asyncio.sleep(0.005)
    seen = [len(pictures(wires[at].rtp())) + senders[at].dropped for at in (0, 2)]
    assert seen == [round(0.7 / FRAME_S)] * 2, "each picture of the others was sent, or counted as dropped"
    assert sum(packet.marker for packet in wires[1].rtp()) <= round(0.2 / FRAME_S)
    assert senders[1].push(UNITS[1], 1), "it needs no keyframe"
    senders[1].retransmit(0)
    assert len(failures) == 1


async def test_a_slow_relay_acts_like_a_full_socket() -> None:
    wire = Wire(relay=True)
    stage = Stage(wire)
    await stage.send(unit(3000, keyframe=True))
    wire.waiting_bytes = 100_000
    await stage.send(unit(3000, keyframe=False))
    assert stage.counters == {"frames_cut": 1}
    wire.waiting_bytes = 0
    assert await stage.send(unit(3000, keyframe=False), unit(3000, keyframe=True)) == [False, True]
    assert len(pictures(wire.rtp())) == 2


async def test_after_half_a_batch_the_sender_knows_what_was_sent() -> None:
    wire = Wire()
    stage = Stage(wire)
    wire.path.refresh()
    wire.path.segmentation = False
    real, room = wire.sendto, 7

    def sendto(datagram: memoryview, address: tuple[str, int]) -> None:
        nonlocal room
        if not 200 <= datagram[1] < 208:
            if not room:
                raise OSError(errno.EAGAIN, "full")
            room -= 1
        real(datagram, address)

    wire.sendto = sendto  # type: ignore[method-assign]
    await stage.send(unit(16_000, keyframe=True))
    assert stage.sender._packet_count == len(wire.rtp()) == 7
    assert stage.counters["frames_cut"] == 1
    room = 2
    stage.sender.retransmit(65_531)
    stage.sender.retransmit((65_530 + 7) & 0xFFFF)
    assert (stage.counters["retransmissions"], stage.counters["packets_not_resent"]) == (1, 1)


async def test_extension_ids_above_14_are_left_out() -> None:
    wire = Wire(GCM, {HeaderExtension.MID: 16, HeaderExtension.ABS_SEND_TIME: 15, HeaderExtension.PLAYOUT_DELAY: 3})
    stage = Stage(wire)
    await stage.send(*UNITS)
    assert pictures(wire.rtp()) == [each.payload for each in UNITS]
    assert wire.path.extensions == {HeaderExtension.PLAYOUT_DELAY: 3}


async def test_a_relay_channel_is_requested_once() -> None:
    wire = Wire(relay=True)
    stage = Stage(wire)
    wire.lose_channel()
    await stage.send(*(unit(3000, keyframe=True, number=number) for number in range(10)))
    await asyncio.sleep(0)
    assert len(wire.bound) == 1
    assert not wire.datagrams


class Audience:
    """Viewers of one camera, each with its wire and its bandwidth estimate (bit/s)."""

    def __init__(self, *estimates: int | None) -> None:
        self.counters: Counter[str] = Counter()
        self.keyframe_due, self.requests = True, 0
        self.hub = Hub(self, time.monotonic, self.counters, dict.fromkeys(Quality, FRAME_S))
        self.packetizer = Packetizer(1140, self.counters)
        self.viewers: list[tuple[RtpSender, Wire, int | None]] = []
        for estimate in estimates:
            wire = Wire()
            sender = RtpSender(self.packetizer, self.counters, frame_s=FRAME_S)
            sender.connect(wire.path)
            self.hub.join(sender, Quality.HD)
            self.viewers.append((sender, wire, estimate))

    def request_keyframe(self, quality: Quality) -> None:
        assert quality is Quality.HD
        self.keyframe_due, self.requests = True, self.requests + 1

    def encode_sd(self, *, on: bool) -> None: ...

    async def play(self, seconds: float, each_frame: Callable[[], None] = lambda: None) -> int:
        """Play at 4 Mbit/s. Returns the number of keyframes."""
        begun_s, keyframes = time.monotonic(), 0
        key, delta = unit(80_000, keyframe=True).payload, unit(16_000, keyframe=False).payload
        for number in range(round(seconds / FRAME_S)):
            keyframe, self.keyframe_due = self.keyframe_due, False
            keyframes += keyframe
            self.hub.push(AccessUnit(key if keyframe else delta, time.monotonic_ns(), keyframe))
            each_frame()
            for sender, _, estimate in self.viewers:
                if estimate is not None and number % 6 == 0:
                    # As with a full path: the estimate falls, recovers, and falls again.
                    sender.report_bandwidth(estimate if number % 30 else estimate * 85 // 100)
            await asyncio.sleep(max(0.0, begun_s + (number + 1) * FRAME_S - time.monotonic()))
        return keyframes


@pytest.mark.slow
async def test_a_slow_viewer_gets_what_its_path_carries_and_hardly_affects_the_others() -> None:
    audience = Audience(None, None, 400_000)
    made: list[object] = []
    packets = audience.packetizer.packets

    def counted(given: AccessUnit) -> Any:
        found = packets(given)
        if not made or made[-1] is not found:
            made.append(found)
        return found

    audience.packetizer.packets = counted  # type: ignore[method-assign,assignment]
    await audience.play(6)
    slow, healthy = audience.viewers[2], audience.viewers[:2]
    before = len(slow[1].datagrams)
    keyframes = await audience.play(10)
    # In each second at most about twice the estimate, and a picture now and then.
    left = list(zip(slow[1].times_s[before:], map(len, slow[1].datagrams[before:]), strict=True))
    most_bytes = max(sum(size for at, size in left if 0 <= at - begin < 1) for begin, _ in left)
    assert 300_000 < 8 * most_bytes < 1_000_000
    assert 1 <= keyframes <= 5
    for sender, _, _ in healthy:
        assert sender.dropped == 0
    assert slow[0].dropped > 200
    assert sum(packet.marker for packet in slow[1].rtp()) > 10
    assert len(made) == len({id(each) for each in made}), "each was packetized once, for all"
    assert not audience.counters["frames_cut"]


@pytest.mark.slow
async def test_a_viewer_that_always_requests_keyframes_gets_few() -> None:
    audience = Audience(None, None)
    sender = audience.viewers[0][0]
    keyframes = await audience.play(6, lambda: audience.hub.request_keyframe(sender))
    assert 2 <= keyframes <= 5


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("aiortc.rtcrtpsender.RTCRtpSender", "_send_rtcp"),
        ("aioice.ice.CandidatePair", "remote_addr"),
        ("aioice.ice.Connection", "_pair_remote_candidate"),
        ("edge.streaming.aiortc_rtp.lib", None),
    ],
)
async def test_a_missing_private_part_is_named(monkeypatch: pytest.MonkeyPatch, owner: str, name: str | None) -> None:
    assert missing_for_own_sender() is None
    if name is None:
        monkeypatch.setattr(owner, object())
    else:
        monkeypatch.delattr(f"{owner}.{name}")
    found = missing_for_own_sender()
    assert found is not None
    assert (name or "srtp_protect") in found


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Connection, "_queue"),
        (Connection, "_remote_candidates"),
        (Connection, "_local_candidates_end"),
        (Connection, "_protocols"),
        (Connection, "_closing"),
        (Connection, "_check_list_done"),
        (IceCandidate, "_network_host"),
        (StunProtocol, "receiver"),
    ],
)
async def test_a_missing_private_attribute_is_named(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str
) -> None:
    init = owner.__init__

    def init_without(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        delattr(self, name)

    monkeypatch.setattr(owner, "__init__", init_without)
    assert missing_for_own_sender() == f"{owner.__name__}.{name}"
