"""Access units as packets, made once and kept once for all viewers."""

from __future__ import annotations

import logging
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from edge.core.access_unit import Quality
from edge.core.pacing import EncodeRate
from edge.core.packetizer import packetize

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)

MARKER = 0x80
_UDP_SEGMENT = 103  # linux/udp.h
_RUN_SEGMENTS = 20
"""Packets for one system call: the kernel takes 64, a Wi-Fi link about as many in one turn."""
_NTP_EPOCH_S = 2_208_988_800
_PAUSE_NS = 5_000_000_000

Packet = tuple[int, int, int]
"""Where a packet lies in its sheet, its bytes with the header and without the tag that protection adds, its marker bit.

A plain tuple: there are hundreds a second.
"""


class Run(NamedTuple):
    """Packets that leave in one system call: all of one size, but for a shorter last one."""

    stop: int
    """The packet after the last."""
    segment_bytes: int
    ancillary: list[tuple[int, int, bytes]]
    """What tells the kernel where to cut."""


class Sheet:
    """All packets of an access unit, one behind the other, with gaps for header and tag; to be copied and filled in."""

    __slots__ = ("data", "packets", "runs", "size_bytes")

    def __init__(self, payloads: Sequence[bytes], header_bytes: int, tag_bytes: int) -> None:
        self.data = memoryview(bytes(tag_bytes + header_bytes).join([b"", *payloads, b""]))
        packets: list[Packet] = []
        offset = tag_bytes
        for payload in payloads:
            plain_bytes = header_bytes + len(payload)
            packets.append((offset, plain_bytes, 0))
            offset += plain_bytes + tag_bytes
        packets[-1] = (*packets[-1][:2], MARKER)
        self.size_bytes = offset - tag_bytes
        self.packets = tuple(packets)
        self.runs = _runs([plain_bytes + tag_bytes for _, plain_bytes, _ in packets])


def _runs(sizes: list[int]) -> tuple[Run, ...]:
    cuts = [0]
    for at in range(1, len(sizes)):
        segment = sizes[cuts[-1]]
        # A shorter packet ends its run.
        if sizes[at] > segment or sizes[at - 1] < segment or at - cuts[-1] >= _RUN_SEGMENTS:
            cuts.append(at)
    return tuple(
        Run(stop, sizes[first], [(socket.IPPROTO_UDP, _UDP_SEGMENT, sizes[first].to_bytes(2, sys.byteorder))])
        for first, stop in zip(cuts, [*cuts[1:], len(sizes)], strict=True)
    )


class Packets:
    """One access unit's payloads, and the sheets that viewers asked for: those with the same gaps share one."""

    __slots__ = ("_sheets", "captured_ntp", "encode_bps", "payloads")

    def __init__(self, payloads: list[bytes], captured_ntp: int, encode_bps: float) -> None:
        self.encode_bps = encode_bps
        self.payloads = payloads
        self.captured_ntp = captured_ntp
        """The wall clock at the capture in NTP's 64 bits, for all viewers the same."""
        self._sheets: dict[tuple[int, int], Sheet] | None = {}

    def sheet(self, header_bytes: int, tag_bytes: int) -> Sheet:
        gaps = header_bytes, tag_bytes
        if self._sheets is None:
            return Sheet(self.payloads, *gaps)
        sheet = self._sheets.get(gaps)
        if sheet is None:
            sheet = self._sheets[gaps] = Sheet(self.payloads, *gaps)
        return sheet

    def forget_sheets(self) -> None:
        """A newer access unit is on its way: for resending, the payloads are enough."""
        self._sheets = None


class Packetizer:
    """Makes `Packets`, once for each access unit, however many viewers ask. `limit_bytes`: of a payload.

    The wall clock is read when pictures begin to come, and not again while they do: one that is set meanwhile (a
    Raspberry Pi has no battery for it) would be seen as a jump in the middle of a stream.
    """

    def __init__(self, limit_bytes: int, counters: Counter[str]) -> None:
        self._limit_bytes = limit_bytes
        self._counters = counters
        self._latest: dict[Quality, tuple[AccessUnit, Packets | None]] = {}
        self._rates = {quality: EncodeRate() for quality in Quality}
        self._captured_ns = 0
        self._ntp_ahead_ns = 0

    def packets(self, unit: AccessUnit) -> Packets | None:
        """None: it cannot be sent, which is logged and counted as `frames_unsendable`, once."""
        latest, packets = self._latest.get(unit.quality, (None, None))
        if latest is unit:
            return packets
        if packets is not None:
            packets.forget_sheets()
        try:
            payloads = packetize(unit.payload, self._limit_bytes)
            rate = self._rates[unit.quality]
            if not unit.keyframe:
                rate.made(len(unit.payload), unit.captured_ns / 1e9)
            packets = Packets(payloads, self._ntp(unit.captured_ns), rate.bps)
        except ValueError as exc:
            log.error("an access unit cannot be sent: %s", exc)  # noqa: TRY400
            self._counters["frames_unsendable"] += 1
            packets = None
        self._latest[unit.quality] = unit, packets
        return packets

    def _ntp(self, captured_ns: int) -> int:
        """Source: RFC 5905, 6."""
        if captured_ns - self._captured_ns > _PAUSE_NS:
            self._ntp_ahead_ns = time.time_ns() - time.monotonic_ns() + _NTP_EPOCH_S * 1_000_000_000
        self._captured_ns = captured_ns
        return ((captured_ns + self._ntp_ahead_ns << 32) // 1_000_000_000) & 0xFFFFFFFFFFFFFFFF
