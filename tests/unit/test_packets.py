"""Packets that are made once for all viewers: layout, batches and header extensions."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from edge.core.access_unit import AccessUnit
from edge.core.annexb import join_annexb
from edge.core.lateness import Lateness
from edge.streaming.packets import Packetizer
from edge.streaming.rtp_sender import HeaderExtension

SPS, PPS = b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80"
MID, SEND = HeaderExtension.MID, HeaderExtension.ABS_SEND_TIME
PLAYOUT, CAPTURE = HeaderExtension.PLAYOUT_DELAY, HeaderExtension.ABS_CAPTURE_TIME


def unit(size: int, captured_ns: int = 1) -> AccessUnit:
    return AccessUnit(join_annexb([SPS, PPS, b"\x65" + b"\x55" * size]), captured_ns, keyframe=True)


def test_viewers_share_packets_and_buffers() -> None:
    packetizer, picture = Packetizer(1140, Counter()), unit(5000)
    packets = packetizer.packets(picture)
    assert packets is not None
    assert packetizer.packets(picture) is packets
    assert packets.buffer(28, 16) is packets.buffer(28, 16)
    assert packets.buffer(28, 16) is not packets.buffer(28, 10)
    assert packetizer.packets(unit(5000)) is not packets


@pytest.mark.parametrize(("header", "tag"), [(12, 10), (40, 16)])
def test_a_buffer_holds_every_payload_and_batches_of_one_size(header: int, tag: int) -> None:
    packets = Packetizer(1140, Counter()).packets(unit(60_000))
    assert packets is not None
    buffer = packets.buffer(header, tag)
    at = tag
    for payload, (offset, plain_bytes, _) in zip(packets.payloads, buffer.packets, strict=True):
        assert offset == at
        assert buffer.data[offset + header : offset + plain_bytes] == payload
        assert plain_bytes == header + len(payload)
        at += plain_bytes + tag
    assert buffer.size_bytes == at - tag
    assert len(buffer.data) >= at
    assert [marker for _, _, marker in buffer.packets] == [0] * (len(buffer.packets) - 1) + [0x80]
    at = 0
    for batch in buffer.batches:
        sizes = [plain_bytes + tag for _, plain_bytes, _ in buffer.packets[at : batch.stop]]
        assert set(sizes[:-1]) <= {batch.segment_bytes}
        assert sizes[-1] <= batch.segment_bytes
        assert 1 <= len(sizes) <= 20
        at = batch.stop
    assert at == len(buffer.packets)
    # One batch for the parameter sets, and the minimum number for the rest.
    assert len(buffer.batches) == 1 + -(-(len(buffer.packets) - 1) // 20)


def elements(extension: bytes) -> dict[int, bytes]:
    """Parse a header extension (RFC 8285, 4.2)."""
    assert extension[:2] == b"\xbe\xde"
    assert len(extension) == 4 + 4 * int.from_bytes(extension[2:4], "big")
    found, at = {}, 4
    while at < len(extension):
        number, size = extension[at] >> 4, (extension[at] & 15) + 1
        if extension[at]:
            found[number] = extension[at + 1 : at + 1 + size]
        at += 1 + size if extension[at] else 1
    return found


def test_negotiated_header_extensions_are_written() -> None:
    ids = {MID: 4, SEND: 3, PLAYOUT: 12, CAPTURE: 13}
    extension = HeaderExtension(ids, "video0", (0, 250))
    found = elements(extension.at(1000.25, 0x0123456789ABCDEF).ljust(extension.bytes, b"\0"))
    assert found[4] == b"video0"
    assert found[12] == (25).to_bytes(3, "big")
    assert found[13] == bytes.fromhex("0123456789abcdef")
    # Seconds in 6.18 bits.
    assert int.from_bytes(found[3], "big") == (1000 % 64 << 18) + (1 << 16)


def test_the_capture_time_does_not_jump_with_the_wall_clock_while_pictures_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packetizer, begun_ns = Packetizer(1140, Counter()), time.monotonic_ns()
    real = time.time_ns

    def wall_s(after_ns: int) -> float:
        packets = packetizer.packets(unit(100, begun_ns + after_ns))
        assert packets is not None
        return packets.captured_ntp / 2**32 - 2_208_988_800

    first_s = wall_s(0)
    assert first_s == pytest.approx(time.time(), abs=5)
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)
    assert wall_s(2_000_000_000) == pytest.approx(first_s + 2, abs=1e-3)
    # After a pause.
    assert wall_s(60_000_000_000) == pytest.approx(first_s + 60 + 3600, abs=5)


def test_an_invalid_access_unit_is_counted_once_for_all_viewers() -> None:
    counters: Counter[str] = Counter()
    packetizer, broken = Packetizer(1140, counters), AccessUnit(b"\1\2\3", 1, keyframe=False)
    assert packetizer.packets(broken) is None
    assert packetizer.packets(broken) is None
    assert counters == {"frames_unsendable": 1}


def test_a_mid_that_is_too_long_is_left_out() -> None:
    assert HeaderExtension({MID: 1}, "a-very-long-mid", (0, 0)).bytes == 0
    longest = HeaderExtension({MID: 14, SEND: 3, PLAYOUT: 12, CAPTURE: 13}, "video0", (0, 0))
    assert longest.bytes <= 28


@pytest.mark.parametrize("ids", [{}, {MID: 1}, {SEND: 2}, {PLAYOUT: 3, SEND: 2}])
def test_other_header_extensions_are_left_out(ids: dict[str, int]) -> None:
    extension = HeaderExtension(ids, "0", (0, 0))
    written = extension.at(5.0, 7).ljust(extension.bytes, b"\0")
    assert len(written) == extension.bytes
    assert (set(elements(written)) if ids else set()) == set(ids.values())


def test_late_means_more_than_a_frame_time_above_the_best_age() -> None:
    lateness = Lateness(1 / 30)
    assert [lateness.late(age_s) for age_s in (0.010, 0.012, 0.040, 0.050, 0.012, 5.0)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_camera_that_became_slower_is_not_late_for_ever() -> None:
    lateness = Lateness(1 / 30)
    lateness.late(0.01)
    late = [lateness.late(0.06) for _ in range(2000)]
    assert late[0]
    assert not late[-1]
