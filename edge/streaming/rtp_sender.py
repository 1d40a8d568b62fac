"""The project's own sender: one viewer's packets, from shared payloads, with as little work a packet as can be."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from edge.core.annexb import BadBitstream
from edge.core.budget import Budget
from edge.core.lane import Lane
from edge.core.pacing import Pacer, heeded

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit
    from edge.streaming.aiortc_private import RtpPath
    from edge.streaming.packets import Packetizer, Packets, Sheet

log = logging.getLogger(__name__)

_UDP_SEGMENT = 103
_RTP_HEADER = struct.Struct("!BBHII")
_VERSION, _EXTENDED = 0x80, 0x10
_EXTENSION_PROFILE = 0xBEDE
_NTP_EPOCH_S = 2_208_988_800
_HISTORY_S = 1.5
_ESTIMATE_S = 0.5
_RESENT_PER_S, _RESENT_BURST = 500, 300
"""A tenth of 4 Mbit/s lost is 40 packets a second; who asks for all again gets no second stream."""
_NO_SEGMENTATION = {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}
_FRAME_S = 1 / 30


class _Sent(NamedTuple):
    """What was sent of one access unit, for resending."""

    first: int
    number: int
    packets: Packets
    timestamp: int
    at_s: float


class _Current:
    """The access unit that is leaving: its protected packets, and which of them have left."""

    __slots__ = ("packets", "run", "sent", "sheet")

    def __init__(self, packets: Packets, sheet: Sheet) -> None:
        self.packets = packets
        self.sheet = sheet
        self.run = 0
        self.sent = 0


class RtpSender:
    """A viewer's lane and its way out. Event loop only; never blocks, never raises.

    The first access units may be pushed before there is a path. What the socket does not take at once costs the rest of
    that access unit; the viewer goes on at the next keyframe, which `wish_keyframe` asks for. `counters` counts
    `frames_cut` (the socket was full), `segmentation_refused`, `retransmissions`, `packets_not_resent`.
    """

    def __init__(
        self,
        packetizer: Packetizer,
        wish_keyframe: Callable[[], None],
        counters: Counter[str],
        *,
        playout_delay_ms: tuple[int, int] = (0, 0),
        limit: int = 8,
    ) -> None:
        self._packetizer = packetizer
        self._wish_keyframe = wish_keyframe
        self._counters = counters
        self._playout_delay_ms = playout_delay_ms
        self._lane: Lane[tuple[AccessUnit, int]] = Lane(limit)
        self._pacer = Pacer(_FRAME_S)
        self._path: RtpPath | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._current: _Current | None = None
        self._history: deque[_Sent] = deque()
        # Below half, so that the roll-over comes late: a receiver that missed the first packets counts it wrong.
        self._sequence = secrets.randbelow(1 << 15)
        self._rtx_sequence = secrets.randbelow(1 << 15)
        self._timestamp_base = secrets.randbits(32)
        self._segmentation = True
        self._packet_count = self._octet_count = 0
        self._estimated = (0.0, 0)
        self._resending = Budget(per_s=_RESENT_PER_S, burst=_RESENT_BURST)

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        on_way = self._lane.push((unit, pts_90k), keyframe=unit.keyframe)
        if self._path is not None and self._timer is None:
            self._send()
        return on_way

    def connect(self, path: RtpPath) -> None:
        """Packets can leave from now on."""
        self._path = path
        self._extension = HeaderExtension(path.extensions, path.mid, self._playout_delay_ms)
        self._header = struct.Struct(f"!BBHII{self._extension.bytes}s")
        self._first_byte = _VERSION | (_EXTENDED if self._extension.bytes else 0)
        self._send()

    def estimate(self, bitrate_bps: int) -> None:
        """What the viewer says that its path carries (REMB)."""
        now_s = asyncio.get_running_loop().time()
        since_s, octets = self._estimated
        if now_s - since_s >= _ESTIMATE_S:
            sending_bps = 8 * (self._octet_count - octets) / (now_s - since_s)
            self._pacer.estimate_bps = heeded(float(bitrate_bps), sending_bps)
            self._estimated = now_s, self._octet_count

    def close(self) -> None:
        """Nothing leaves any more. Idempotent."""
        self._path = self._current = None
        self._history.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def retransmit(self, sequence: int) -> None:
        """Send a lost packet again, under RTX's own number (RFC 4588)."""
        path = self._path
        if path is None or path.rtx_payload_type is None:
            return
        if not self._resending.take(asyncio.get_running_loop().time()):
            self._counters["packets_not_resent"] += 1
            return
        for sent in reversed(self._history):
            number = (sequence - sent.first) & 0xFFFF
            if number < sent.number:
                break
        else:
            self._counters["packets_not_resent"] += 1
            return
        payloads = sent.packets.payloads
        marker = 0x80 if number == len(payloads) - 1 else 0
        extension = self._extension.at(time.time(), sent.packets.unit.captured_ns)
        header = self._header.pack(
            self._first_byte,
            path.rtx_payload_type | marker,
            self._rtx_sequence,
            sent.timestamp,
            path.rtx_ssrc,
            extension,
        )
        self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        self._counters["retransmissions"] += 1
        path.send(header + sequence.to_bytes(2, "big") + payloads[number])

    def _send(self) -> None:
        """As much as may leave now; the rest when the pacer says."""
        self._timer = None
        try:
            self._send_on()
        except Exception:
            # This viewer gets nothing more, and asks anew; nobody else notices. A test run fails on the counter.
            log.exception("a bug in the sender")
            self._counters["sender_bugs"] += 1
            self.close()

    def _send_on(self) -> None:
        path = self._path
        if path is None or not path.open:
            return
        while True:
            if self._current is None and not self._begin(path):
                return
            assert self._current is not None
            if not self._run_out(path, self._current):
                return
            self._current = None

    def _begin(self, path: RtpPath) -> bool:
        """Take the next access unit from the lane and fill in its packets."""
        item = self._lane.take()
        if item is None:
            return False
        unit, pts_90k = item
        try:
            packets = self._packetizer.packets(unit)
        except (BadBitstream, ValueError) as exc:
            log.error("an access unit cannot be sent: %s", exc)  # noqa: TRY400
            self._counters["frames_unsendable"] += 1
            return self._begin(path)
        sheet = packets.sheet(_RTP_HEADER.size + self._extension.bytes, path.tag_bytes)
        now_s = time.time()
        timestamp = (self._timestamp_base + pts_90k) & 0xFFFFFFFF
        extension = self._extension.at(now_s, unit.captured_ns)
        path.protect(
            sheet.data,
            sheet.packets,
            header=self._header,
            first_byte=self._first_byte,
            sequence=self._sequence,
            timestamp=timestamp,
            extension=extension,
        )
        self._remember(packets, timestamp)
        count = len(sheet.packets)
        self._packet_count += count
        self._octet_count += packets.payload_bytes
        path.report(_ntp(_wall_s(now_s, unit.captured_ns)), timestamp, self._packet_count, self._octet_count)
        self._pacer.begin(len(sheet.data), asyncio.get_running_loop().time())
        self._current = _Current(packets, sheet)
        return True

    def _remember(self, packets: Packets, timestamp: int) -> None:
        now_s = asyncio.get_running_loop().time()
        count = len(packets.payloads)
        self._history.append(_Sent(self._sequence, count, packets, timestamp, now_s))
        while now_s - self._history[0].at_s > _HISTORY_S:
            self._history.popleft()
        self._sequence = (self._sequence + count) & 0xFFFF

    def _run_out(self, path: RtpPath, current: _Current) -> bool:
        """Whether all of it has left."""
        loop = asyncio.get_running_loop()
        runs = current.sheet.runs
        while current.run < len(runs):
            if not self._pacer.may_send(loop.time()):
                self._timer = loop.call_later(self._pacer.wait_s(), self._send)
                return False
            first, count, segment = runs[current.run]
            room = max(1, self._pacer.room_bytes // segment)
            some = min(count - current.sent, room)
            size = self._send_some(path, current.sheet, first + current.sent, some, segment)
            if size is None:
                self._cut()
                return True
            self._pacer.sent(size)
            current.sent += some
            if current.sent == count:
                current.run, current.sent = current.run + 1, 0
        return True

    def _send_some(self, path: RtpPath, sheet: Sheet, first: int, count: int, segment: int) -> int | None:
        """Send these packets; their bytes, or None where the socket is full."""
        packets = sheet.packets
        last = packets[first + count - 1]
        start, end = packets[first].offset, last.offset + last.plain_bytes + path.tag_bytes
        datagrams = path.datagrams
        try:
            if count > 1 and self._segmentation and path.socket is not None:
                try:
                    ancillary = [(socket.IPPROTO_UDP, _UDP_SEGMENT, segment.to_bytes(2, "little"))]
                    path.socket.sendmsg([datagrams[start:end]], ancillary, 0, path.address)
                except OSError as exc:
                    if exc.errno not in _NO_SEGMENTATION:
                        raise
                    self._segmentation = False
                    self._counters["segmentation_refused"] += 1
                else:
                    return end - start
            for at in range(start, end, segment):
                path.send_datagram(datagrams[at : min(at + segment, end)])
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as exc:
            # As a lost packet: whether the viewer is gone is told by ICE.
            log.debug("a datagram was not sent: %s", exc)
            self._counters["datagrams_failed"] += count
        return end - start

    def _cut(self) -> None:
        """The rest of this access unit is lost, and what waits is of no use without it."""
        self._counters["frames_cut"] += 1
        self._lane.cut()
        self._wish_keyframe()


class HeaderExtension:
    """The header extension of one viewer: a fixed part, and two times. Source: RFC 8285, 4.2 (one-byte form)."""

    MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
    ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
    PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
    ABS_CAPTURE_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"

    def __init__(self, ids: dict[str, int], mid: str, playout_delay_ms: tuple[int, int]) -> None:
        fixed = b""
        if self.MID in ids and 0 < len(mid) <= 16:
            fixed += bytes([ids[self.MID] << 4 | len(mid) - 1]) + mid.encode()
        if self.PLAYOUT_DELAY in ids:
            lowest, highest = (delay_ms // 10 for delay_ms in playout_delay_ms)
            fixed += bytes([ids[self.PLAYOUT_DELAY] << 4 | 2]) + (lowest << 12 | highest).to_bytes(3, "big")
        self._send_id, self._capture_id = ids.get(self.ABS_SEND_TIME), ids.get(self.ABS_CAPTURE_TIME)
        size = len(fixed) + 4 * (self._send_id is not None) + 9 * (self._capture_id is not None)
        words = -(-size // 4)
        self.bytes = 4 + 4 * words if size else 0
        self._fixed = struct.pack("!HH", _EXTENSION_PROFILE, words) + fixed

    def at(self, now_s: float, captured_ns: int) -> bytes:
        """For a packet that leaves now. Shorter than `bytes` where padding follows."""
        if not self.bytes:
            return b""
        made = self._fixed
        if self._send_id is not None:
            made += bytes([self._send_id << 4 | 2]) + (_ntp(now_s) >> 14 & 0xFFFFFF).to_bytes(3, "big")
        if self._capture_id is not None:
            made += bytes([self._capture_id << 4 | 7]) + _ntp(_wall_s(now_s, captured_ns)).to_bytes(8, "big")
        return made


def _wall_s(now_s: float, captured_ns: int) -> float:
    """The wall clock at the capture."""
    return now_s - (time.monotonic_ns() - captured_ns) / 1e9


def _ntp(wall_s: float) -> int:
    return int((wall_s + _NTP_EPOCH_S) * (1 << 32)) & 0xFFFFFFFFFFFFFFFF
