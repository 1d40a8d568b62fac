"""What leaves a sender, byte by byte, and what it costs the others when one viewer is slow."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import join_annexb
from edge.streaming.aiortc_private import missing_for_own_sender
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
    """One sender on a wire."""

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
        """Push them a frame's time apart, and wait until all has left."""
        on_way = []
        for each in units:
            self.pts_90k += 3000
            on_way.append(self.sender.push(each, self.pts_90k))
            async with asyncio.timeout(10):
                while self.sender._timer is not None:
                    await asyncio.sleep(0.005)
        return on_way


UNITS = [unit(70_000, keyframe=True), *(unit(size, keyframe=False, number=size) for size in (16_000, 300, 1141, 2281))]


@pytest.mark.parametrize("profile", [GCM, CM])
@pytest.mark.parametrize("packet_bytes", [500, 1200, 1400])
async def test_every_packet_fits_and_every_picture_comes_back(packet_bytes: int, profile: bytes) -> None:
    stage = Stage(Wire(profile, EXTENSIONS), packet_bytes)
    assert await stage.send(*UNITS) == [True] * len(UNITS)
    assert max(map(len, stage.wire.datagrams)) <= packet_bytes
    packets = stage.wire.rtp()
    assert {(packet.payload_type, packet.ssrc) for packet in packets} == {(VIDEO, SSRC)}
    # Over the sequence numbers' end.
    assert [packet.sequence_number for packet in packets] == [(65_530 + at) & 0xFFFF for at in range(len(packets))]
    assert sorted({packet.timestamp for packet in packets}) == [3000 * (at + 1) for at in range(len(UNITS))]
    assert pictures(packets) == [each.payload for each in UNITS]
    assert not stage.counters


async def test_the_same_bytes_leave_in_runs_one_by_one_and_through_a_relay() -> None:
    fixed = {HeaderExtension.MID: 1, HeaderExtension.PLAYOUT_DELAY: 3}
    runs, plain, relayed = (Stage(wire) for wire in (Wire(GCM, fixed), Wire(GCM, fixed), Wire(GCM, fixed, relay=True)))
    assert plain.wire.path.open
    plain.wire.path.segmentation = False
    small = unit(100, keyframe=True)
    sent = []
    for stage in (runs, plain, relayed):
        await stage.send(small, *UNITS)
        sent.append([each for each in stage.wire.datagrams if each[1] & 0x7F == VIDEO])
    assert sent[0] == sent[1] == sent[2]
    # A keyframe leaves in chunks, by the clock.
    assert runs.wire.calls < plain.wire.calls / 2


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOPROTOOPT])
async def test_a_kernel_that_does_not_cut_is_noticed_once_and_again_on_another_path(number: int) -> None:
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
    assert wire.path.open
    assert wire.path.segmentation


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_a_full_socket_costs_the_rest_of_the_picture_and_waits_for_a_keyframe(number: int) -> None:
    wire = Wire()
    stage = Stage(wire)
    first, lost, after, again = (
        unit(16_000, keyframe=keyframe, number=at) for at, keyframe in enumerate((True, False, False, True))
    )
    await stage.send(first)
    wire.refusal = OSError(number, "full")
    assert await stage.send(lost) == [True]
    wire.refusal = None
    assert await stage.send(after) == [False], "it wants a keyframe"
    assert await stage.send(again) == [True]
    assert stage.counters == {"frames_cut": 1}
    packets = wire.rtp()
    assert pictures(packets) == [first.payload, again.payload]
    numbers = [packet.sequence_number for packet in packets]
    gaps = [(later - earlier) & 0xFFFF for earlier, later in itertools.pairwise(numbers)]
    assert sorted(gaps)[-2:] == [1, 16], "the lost picture's numbers are missing: the receiver knows"
    # What never left is not sent again either.
    stage.sender.retransmit((numbers[gaps.index(16)] + 1) & 0xFFFF)
    assert stage.counters["retransmissions"] == 0
    assert stage.counters["packets_not_resent"] == 1


async def test_a_lost_packet_is_sent_again_once_in_a_while() -> None:
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
    # With a long way to the viewer, what it asks for again is still on its way.
    wire.sender._RTCRtpSender__rtt = 5.0
    await asyncio.sleep(0.06)
    stage.sender.retransmit(65_533)
    assert stage.counters["retransmissions"] == 2


async def test_who_asks_for_everything_again_gets_no_second_stream() -> None:
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


async def test_reports_say_what_had_left_and_when_it_was_captured() -> None:
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


async def test_a_bug_ends_this_viewer_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    company = Company(None, None, None)
    await company.play(0.2)
    senders, wires = [sender for sender, _, _ in company.viewers], [wire for _, wire, _ in company.viewers]
    failures: list[RtpSender] = []

    def failed() -> None:
        failures.append(senders[1])
        company.hub.leave(senders[1])

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    senders[1].failed = failed
    wires[1].path.protect = broken  # type: ignore[method-assign,assignment]
    await company.play(0.5)
    assert failures == [senders[1]]
    assert company.counters["sender_bugs"] == 1
    assert "a bug in the sender" in caplog.text
    seen = [len(pictures(wire.rtp())) for wire in wires]
    assert seen[0] == seen[2] > 15, "they missed no picture"
    assert seen[1] < 10
    assert senders[1].push(UNITS[1], 1), "no keyframe is of use to it"
    senders[1].retransmit(0)
    assert len(failures) == 1


async def test_a_slow_relay_drops_as_a_full_socket_does() -> None:
    wire = Wire(relay=True)
    stage = Stage(wire)
    await stage.send(unit(3000, keyframe=True))
    wire.waiting_bytes = 100_000
    await stage.send(unit(3000, keyframe=False))
    assert stage.counters == {"frames_cut": 1}
    wire.waiting_bytes = 0
    assert await stage.send(unit(3000, keyframe=False), unit(3000, keyframe=True)) == [False, True]
    assert len(pictures(wire.rtp())) == 2


async def test_of_a_run_that_stops_halfway_what_left_is_known() -> None:
    wire = Wire()
    stage = Stage(wire)
    wire.path.open  # noqa: B018  it looks at the pair
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


async def test_extension_ids_that_do_not_fit_are_left_out() -> None:
    wire = Wire(GCM, {HeaderExtension.MID: 16, HeaderExtension.ABS_SEND_TIME: 15, HeaderExtension.PLAYOUT_DELAY: 3})
    stage = Stage(wire)
    await stage.send(*UNITS)
    assert pictures(wire.rtp()) == [each.payload for each in UNITS]
    assert wire.path.extensions == {HeaderExtension.PLAYOUT_DELAY: 3}


async def test_a_relay_without_a_channel_is_asked_for_one_once() -> None:
    wire = Wire(relay=True)
    stage = Stage(wire)
    wire.lose_channel()
    await stage.send(*(unit(3000, keyframe=True, number=number) for number in range(10)))
    assert len(wire.bound) == 1
    assert not wire.datagrams


class Company:
    """Viewers of one camera, each on its wire, with the estimate that it tells (bit/s)."""

    def __init__(self, *estimates: int | None) -> None:
        self.counters: Counter[str] = Counter()
        self.keyframe_due, self.asked = True, 0
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
        self.keyframe_due, self.asked = True, self.asked + 1

    def encode_sd(self, *, on: bool) -> None: ...

    async def play(self, seconds: float, each_frame: Callable[[], None] = lambda: None) -> int:
        """4 Mbit/s; the number of keyframes."""
        begun_s, keyframes = time.monotonic(), 0
        key, delta = unit(80_000, keyframe=True).payload, unit(16_000, keyframe=False).payload
        for number in range(round(seconds / FRAME_S)):
            keyframe, self.keyframe_due = self.keyframe_due, False
            keyframes += keyframe
            self.hub.push(AccessUnit(key if keyframe else delta, time.monotonic_ns(), keyframe))
            each_frame()
            for sender, _, estimate in self.viewers:
                if estimate is not None and number % 6 == 0:
                    # As a receiver does whose path is full: it falls, and comes up again, and falls.
                    sender.estimate(estimate if number % 30 else estimate * 85 // 100)
            await asyncio.sleep(max(0.0, begun_s + (number + 1) * FRAME_S - time.monotonic()))
        return keyframes


@pytest.mark.slow
async def test_one_slow_viewer_is_sent_what_its_path_carries_and_costs_the_others_little() -> None:
    company = Company(None, None, 400_000)
    made: list[object] = []
    packets = company.packetizer.packets

    def counted(given: AccessUnit) -> Any:
        found = packets(given)
        if not made or made[-1] is not found:
            made.append(found)
        return found

    company.packetizer.packets = counted  # type: ignore[method-assign,assignment]
    await company.play(6)
    slow, healthy = company.viewers[2], company.viewers[:2]
    before = len(slow[1].datagrams)
    keyframes = await company.play(10)
    # In no second more than about twice what it says that its path carries, and a picture now and then.
    left = list(zip(slow[1].times_s[before:], map(len, slow[1].datagrams[before:]), strict=True))
    most_bytes = max(sum(size for at, size in left if 0 <= at - begin < 1) for begin, _ in left)
    assert 300_000 < 8 * most_bytes < 1_000_000
    assert 1 <= keyframes <= 5
    for sender, _, _ in healthy:
        assert sender.dropped == 0
    assert slow[0].dropped > 200
    assert sum(packet.marker for packet in slow[1].rtp()) > 10
    assert len(made) == len({id(each) for each in made}), "each was cut once, for all"
    assert not company.counters["frames_cut"]


@pytest.mark.slow
async def test_a_viewer_that_cries_for_keyframes_gets_one_now_and_then() -> None:
    company = Company(None, None)
    sender = company.viewers[0][0]
    keyframes = await company.play(6, lambda: company.hub.wish_keyframe(sender))
    assert 2 <= keyframes <= 5


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("aiortc.rtcrtpsender.RTCRtpSender", "_send_rtcp"),
        ("aioice.ice.CandidatePair", "remote_addr"),
        ("edge.streaming.aiortc_private.lib", None),
    ],
)
async def test_a_missing_part_is_named(monkeypatch: pytest.MonkeyPatch, owner: str, name: str | None) -> None:
    assert missing_for_own_sender() is None
    if name is None:
        monkeypatch.setattr(owner, object())
    else:
        monkeypatch.delattr(f"{owner}.{name}")
    found = missing_for_own_sender()
    assert found is not None
    assert (name or "srtp_protect") in found
