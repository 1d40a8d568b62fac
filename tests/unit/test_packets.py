"""Packets made once for all viewers: how they are laid out, which leave together, and what stands in their headers."""

from __future__ import annotations

import time

import pytest

from edge.core.access_unit import AccessUnit
from edge.core.annexb import join_annexb
from edge.core.lateness import Lateness
from edge.streaming.packets import Packetizer
from edge.streaming.rtp_sender import HeaderExtension

SPS, PPS = b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80"
MID, SEND = HeaderExtension.MID, HeaderExtension.ABS_SEND_TIME
PLAYOUT, CAPTURE = HeaderExtension.PLAYOUT_DELAY, HeaderExtension.ABS_CAPTURE_TIME


def unit(size: int) -> AccessUnit:
    return AccessUnit(join_annexb([SPS, PPS, b"\x65" + b"\x55" * size]), 1, keyframe=True)


def test_all_viewers_share_what_is_made_once() -> None:
    packetizer, picture = Packetizer(1140), unit(5000)
    packets = packetizer.packets(picture)
    assert packetizer.packets(picture) is packets
    assert packets.sheet(28, 16) is packets.sheet(28, 16)
    assert packets.sheet(28, 16) is not packets.sheet(28, 10)
    assert packetizer.packets(unit(5000)) is not packets


@pytest.mark.parametrize(("header", "tag"), [(12, 10), (40, 16)])
def test_a_sheet_has_every_payload_in_its_place_and_runs_of_one_size(header: int, tag: int) -> None:
    packets = Packetizer(1140).packets(unit(60_000))
    sheet = packets.sheet(header, tag)
    for payload, packet in zip(packets.payloads, sheet.packets, strict=True):
        begin = packet.offset + header
        assert sheet.data[begin : begin + len(payload)] == payload
        assert packet.plain_bytes == header + len(payload)
    assert [packet.marker for packet in sheet.packets] == [0] * (len(sheet.packets) - 1) + [0x80]
    at = 0
    for run in sheet.runs:
        assert run.first == at
        sizes = [packet.plain_bytes + tag for packet in sheet.packets[at : at + run.number]]
        assert set(sizes[:-1]) <= {run.segment_bytes}
        assert sizes[-1] <= run.segment_bytes
        assert run.number <= 20
        at += run.number
    assert at == len(sheet.packets)
    # The parameter sets, and then as few system calls as there can be.
    assert len(sheet.runs) == 1 + -(-(len(sheet.packets) - 1) // 20)


def elements(extension: bytes) -> dict[int, bytes]:
    """As a receiver reads them (RFC 8285, 4.2)."""
    assert extension[:2] == b"\xbe\xde"
    assert len(extension) == 4 + 4 * int.from_bytes(extension[2:4], "big")
    found, at = {}, 4
    while at < len(extension):
        number, size = extension[at] >> 4, (extension[at] & 15) + 1
        if extension[at]:
            found[number] = extension[at + 1 : at + 1 + size]
        at += 1 + size if extension[at] else 1
    return found


def test_header_extensions_that_were_agreed_on_are_written() -> None:
    ids = {MID: 4, SEND: 3, PLAYOUT: 12, CAPTURE: 13}
    extension = HeaderExtension(ids, "video0", (0, 250))
    now_s, captured_ns = time.time(), time.monotonic_ns() - 50_000_000
    found = elements(extension.at(now_s, captured_ns).ljust(extension.bytes, b"\0"))
    assert found[4] == b"video0"
    assert found[12] == (25).to_bytes(3, "big")
    ntp = int.from_bytes(found[13], "big") / 2**32 - 2_208_988_800
    assert ntp == pytest.approx(now_s - 0.05, abs=0.02)
    sent = int.from_bytes(found[3], "big")
    assert sent == int((now_s + 2_208_988_800) * 2**18) & 0xFFFFFF


@pytest.mark.parametrize("ids", [{}, {MID: 1}, {SEND: 2}, {PLAYOUT: 3, SEND: 2}])
def test_what_was_not_agreed_on_is_left_out(ids: dict[str, int]) -> None:
    extension = HeaderExtension(ids, "0", (0, 0))
    written = extension.at(time.time(), time.monotonic_ns()).ljust(extension.bytes, b"\0")
    assert len(written) == extension.bytes
    assert (set(elements(written)) if ids else set()) == set(ids.values())


def test_late_is_more_than_a_frame_over_the_best_of_late() -> None:
    lateness = Lateness(1 / 30)
    assert [lateness.late(age_s) for age_s in (0.010, 0.012, 0.040, 0.050, 0.012, 5.0)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_camera_that_has_become_slower_is_not_late_for_ever() -> None:
    lateness = Lateness(1 / 30)
    lateness.late(0.01)
    late = [lateness.late(0.06) for _ in range(2000)]
    assert late[0]
    assert not late[-1]
