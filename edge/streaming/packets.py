"""Access units as packets, made once for all viewers."""

from __future__ import annotations

import logging
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from edge.core.access_unit import Quality
from edge.core.log_limit import LogLimit
from edge.core.pacing import EncodeRate
from edge.core.packetizer import packetize

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)

MARKER = 0x80
_UDP_SEGMENT = 103  # linux/udp.h
_BATCH_PACKETS = 20
"""Packets per system call. The kernel allows 64; a Wi-Fi link sends about 20 in one turn."""
_NTP_EPOCH_S = 2_208_988_800
_PAUSE_NS = 5_000_000_000
_LOG_FAILURES_S = 10.0

Packet = tuple[int, int, int]
"""Offset in its buffer, size with header and without SRTP's tag, marker bit. A plain tuple, for speed."""


class Batch(NamedTuple):
    """Packets that are sent in one system call: all of one size, except for a shorter last one."""

    stop: int
    """The index after the last packet."""
    segment_bytes: int
    ancillary: list[tuple[int, int, bytes]]
    """The size for the kernel (UDP_SEGMENT)."""


class PacketBuffer:
    """All packets of an access unit in one buffer, with gaps for header and tag; senders copy it and fill the gaps."""

    __slots__ = ("batches", "data", "packets", "size_bytes")

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
        self.batches = _batches([plain_bytes + tag_bytes for _, plain_bytes, _ in packets])


def _batches(sizes: list[int]) -> tuple[Batch, ...]:
    starts = [0]
    for at in range(1, len(sizes)):
        segment = sizes[starts[-1]]
        # A shorter packet ends its batch.
        if sizes[at] > segment or sizes[at - 1] < segment or at - starts[-1] >= _BATCH_PACKETS:
            starts.append(at)
    return tuple(
        Batch(stop, sizes[first], [(socket.IPPROTO_UDP, _UDP_SEGMENT, sizes[first].to_bytes(2, sys.byteorder))])
        for first, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)
    )


class Packets:
    """The payloads of one access unit, and their buffers; viewers with the same header and tag size share one."""

    __slots__ = ("_buffers", "captured_ntp", "encode_bps", "payloads")

    def __init__(self, payloads: list[bytes], captured_ntp: int, encode_bps: float) -> None:
        self.encode_bps = encode_bps
        self.payloads = payloads
        self.captured_ntp = captured_ntp
        """The wall clock at the capture, in the 64 bits of NTP."""
        self._buffers: dict[tuple[int, int], PacketBuffer] | None = {}

    def buffer(self, header_bytes: int, tag_bytes: int) -> PacketBuffer:
        sizes = header_bytes, tag_bytes
        if self._buffers is None:
            return PacketBuffer(self.payloads, *sizes)
        buffer = self._buffers.get(sizes)
        if buffer is None:
            buffer = self._buffers[sizes] = PacketBuffer(self.payloads, *sizes)
        return buffer

    def release_buffers(self) -> None:
        """Free the buffers when a newer access unit exists; retransmissions need only the payloads."""
        self._buffers = None


class Packetizer:
    """Makes the `Packets` of each access unit once, for all viewers. `limit_bytes`: the maximum size of a payload.

    The wall clock is read when pictures begin, and again only after a pause. A Raspberry Pi sets its clock after it
    started; viewers would see that as a jump within the stream.
    """

    def __init__(self, limit_bytes: int, counters: Counter[str]) -> None:
        self._limit_bytes = limit_bytes
        self._counters = counters
        self._latest: dict[Quality, tuple[AccessUnit, Packets | None]] = {}
        self._rates = {quality: EncodeRate() for quality in Quality}
        self._failures = LogLimit(_LOG_FAILURES_S)
        self._captured_ns = 0
        self._ntp_offset_ns = 0

    def packets(self, unit: AccessUnit) -> Packets | None:
        """Return the packets; None: the unit is invalid, which is counted once as `frames_unsendable`, and logged."""
        latest, packets = self._latest.get(unit.quality, (None, None))
        if latest is unit:
            return packets
        if packets is not None:
            packets.release_buffers()
        try:
            payloads = packetize(unit.payload, self._limit_bytes)
            rate = self._rates[unit.quality]
            if not unit.keyframe:
                rate.add(len(unit.payload), unit.captured_ns / 1e9)
            packets = Packets(payloads, self._ntp(unit.captured_ns), rate.bps)
        except ValueError as exc:
            if count := self._failures.due(unit.captured_ns / 1e9):
                log.error(
                    "access unit could not be packetized quality=%s error=%r count=%d", unit.quality, str(exc), count
                )
            self._counters["frames_unsendable"] += 1
            packets = None
        self._latest[unit.quality] = unit, packets
        return packets

    def _ntp(self, captured_ns: int) -> int:
        """Source: RFC 5905, 6."""
        if captured_ns - self._captured_ns > _PAUSE_NS:
            self._ntp_offset_ns = time.time_ns() - time.monotonic_ns() + _NTP_EPOCH_S * 1_000_000_000
        self._captured_ns = captured_ns
        return ((captured_ns + self._ntp_offset_ns << 32) // 1_000_000_000) & 0xFFFFFFFFFFFFFFFF
