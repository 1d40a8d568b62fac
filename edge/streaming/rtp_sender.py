"""The project's own sender: one viewer's packets, from shared payloads, with as little work a packet as can be."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import struct
import time
from collections import deque
from typing import TYPE_CHECKING

from edge.core.budget import Budget
from edge.core.lane import Lane
from edge.core.pacing import Pacer, PathEstimate
from edge.streaming.packets import MARKER

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit
    from edge.streaming.aiortc_private import RtpPath
    from edge.streaming.packets import Packetizer, Packets, Run, Sheet

log = logging.getLogger(__name__)

_EXTENSION_PROFILE = 0xBEDE
_HISTORY_S = 1.5
_RESENT_PER_S, _RESENT_BURST = 250, 300
"""A tenth of 4 Mbit/s lost is 40 packets a second; who asks for all again gets no second stream."""
_AGAIN_S = 0.05
_FULL = {errno.EAGAIN, errno.EINTR, errno.ENOBUFS}
_MID_BYTES = 6
"""Of the longest that is told: browsers name their sections 0, 1 or video, and each packet has to carry it."""
_NO_SEGMENTATION = {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}


class _Outgoing:
    """An access unit on its way to one viewer, and then its history."""

    __slots__ = ("first", "left_s", "packets", "resent_s", "run", "sent", "timestamp")

    def __init__(self, packets: Packets, first: int, timestamp: int, now_s: float) -> None:
        self.packets = packets
        self.first = first
        """The sequence number of its first packet."""
        self.timestamp = timestamp
        self.left_s = now_s
        """When the last of it left, so far."""
        self.resent_s: dict[int, float] = {}
        """When a packet was last sent again."""
        self.run = 0
        self.sent = 0
        """How many packets have left; also where the rest was cut off."""


class RtpSender:
    """A viewer's lane and its way out. Event loop only; never blocks, never raises.

    The first access units may be pushed before there is a path. What the socket does not take at once costs the rest of
    that access unit; the viewer goes on at the next keyframe. `failed` is called once where it cannot go on at all.
    `counters` counts `frames_cut` (the socket was full), `segmentation_refused`, `retransmissions`,
    `packets_not_resent`, `datagrams_failed`, `sender_bugs`.
    """

    failed: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        packetizer: Packetizer,
        counters: Counter[str],
        *,
        frame_s: float,
        playout_delay_ms: tuple[int, int] = (0, 0),
    ) -> None:
        self._packetizer = packetizer
        self._counters = counters
        self._playout_delay_ms = playout_delay_ms
        self._lane: Lane[tuple[Packets, int]] = Lane()
        self._pacer = Pacer(frame_s)
        self._loop = asyncio.get_running_loop()
        self._path: RtpPath | None = None
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._current: tuple[_Outgoing, Sheet] | None = None
        self._history: deque[_Outgoing] = deque()
        # Below half, so that the roll-over comes late: a receiver that missed the first packets counts it wrong.
        self._sequence = secrets.randbelow(1 << 15)
        self._rtx_sequence = secrets.randbelow(1 << 15)
        self._timestamp_base = secrets.randbits(32)
        self._packet_count = self._octet_count = self._sent_bytes = 0
        self._estimate = PathEstimate()
        self._estimated = False
        self._encode_bps = 0.0
        self._resending = Budget(per_s=_RESENT_PER_S, burst=_RESENT_BURST)

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        if self._closed:
            return True
        packets = self._packetizer.packets(unit)
        if packets is None:
            self._lane.cut()  # nothing that follows is of use to a viewer that never saw this one
            return False
        self._encode_bps = packets.encode_bps
        on_way = self._lane.push((packets, pts_90k), keyframe=unit.keyframe)
        if self._path is not None and self._timer is None:
            self._send()
        if on_way or self._path is None:
            return on_way
        # While older packets wait for their turn, or the way is closed, a keyframe could only wait, too.
        return self._timer is not None or not self._path.open

    def connect(self, path: RtpPath) -> None:
        """Packets can leave from now on."""
        self._path = path
        self._extension = HeaderExtension(path.extensions, path.mid, self._playout_delay_ms)
        path.wear(self._extension.bytes)
        self._send()

    def estimate(self, bitrate_bps: int) -> None:
        """What the viewer says that its path carries (REMB)."""
        now_s = time.monotonic()
        self._estimate.told(bitrate_bps, sent_bytes=self._sent_bytes, encode_bps=self._encode_bps, now_s=now_s)
        self._estimated = True
        self._pacer.path(self._estimate.bps(now_s))

    def lost(self, share: float) -> None:
        """What the viewer reports as lost (0..1)."""
        self._estimate.lost(share)

    def close(self) -> None:
        """Nothing leaves any more. Idempotent."""
        self._closed = True
        self._path = self._current = None
        self._history.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fail(self) -> None:
        """In an exception's handler: a bug. This viewer's session ends; nobody else notices."""
        log.exception("a bug in the sender")  # noqa: LOG004  called in a handler
        self._counters["sender_bugs"] += 1
        self.close()
        # Not now: it may be in the middle of what is pushed to all.
        self._loop.call_soon(self.failed)

    def retransmit(self, sequence: int) -> None:
        """Send a lost packet again, under RTX's own number (RFC 4588). A viewer that knows no RTX gets none."""
        path = self._path
        if path is None or path.rtx_payload_type is None or not path.open:
            return
        now_s = time.monotonic()
        lost = self._lost(sequence, now_s, path.rtt_s)
        # What is sent again has its place in the pace; a path that loses all would only be flooded.
        if lost is None or not self._pacer.may_resend(now_s) or not self._resending.take(now_s):
            self._counters["packets_not_resent"] += 1
            return
        outgoing, number = lost
        outgoing.resent_s[number] = now_s
        payloads = outgoing.packets.payloads
        datagram = path.protect_again(
            payloads[number],
            marker=MARKER if number == len(payloads) - 1 else 0,
            sequence=self._rtx_sequence,
            timestamp=outgoing.timestamp,
            extension=self._extension.at(now_s, outgoing.packets.captured_ntp),
            original=sequence,
        )
        self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        try:
            path.send_datagram(datagram)
        except OSError:
            self._counters["packets_not_resent"] += 1
        else:
            self._counters["retransmissions"] += 1
            self._left(len(datagram))

    def _lost(self, sequence: int, now_s: float, rtt_s: float) -> tuple[_Outgoing, int] | None:
        """The access unit of this packet, and which of it it is; None: too old, never sent, or just sent again."""
        for outgoing in reversed(self._history):
            number = (sequence - outgoing.first) & 0xFFFF
            if number < len(outgoing.packets.payloads):
                again_s = outgoing.resent_s.get(number, float("-inf")) + max(_AGAIN_S, rtt_s)
                return (outgoing, number) if number < outgoing.sent and now_s >= again_s else None
        return None

    def _send(self) -> None:
        """As much as may leave now; the rest when the pacer says."""
        self._timer = None
        path = self._path
        try:
            if path is not None and path.open:
                now_s = time.monotonic()
                while (current := self._current or self._begin(path, now_s)) is not None:
                    if not self._run_out(path, *current, now_s):
                        return
                    self._current = None
        except Exception:  # noqa: BLE001  told as a failure
            self.fail()

    def _begin(self, path: RtpPath, now_s: float) -> tuple[_Outgoing, Sheet] | None:
        """Take the next access unit from the lane."""
        item = self._lane.take()
        if item is None:
            return None
        packets, pts_90k = item
        outgoing = _Outgoing(packets, self._sequence, (self._timestamp_base + pts_90k) & 0xFFFFFFFF, now_s)
        self._sequence = (self._sequence + len(packets.payloads)) & 0xFFFF
        history = self._history
        history.append(outgoing)
        while history[0].left_s < now_s - _HISTORY_S:
            history.popleft()
        sheet = packets.sheet(path.header_bytes, path.tag_bytes)
        if self._estimated:
            self._pacer.path(self._estimate.bps(now_s))
        self._pacer.begin(sheet.size_bytes, now_s)
        self._current = outgoing, sheet
        return self._current

    def _run_out(self, path: RtpPath, outgoing: _Outgoing, sheet: Sheet, now_s: float) -> bool:
        """Send what may leave; whether no more of it will."""
        while outgoing.run < len(sheet.runs):
            run = sheet.runs[outgoing.run]
            room = self._pacer.room_bytes(now_s)
            if room <= 0:
                self._timer = self._loop.call_later(self._pacer.wait_s(), self._send)
                return False
            stop = min(run.stop, outgoing.sent + max(1, int(room) // run.segment_bytes))
            if not self._send_some(path, outgoing, sheet, stop, now_s):
                # The rest of it is lost, and what waits is of no use without it.
                self._counters["frames_cut"] += 1
                self._lane.cut()
                return True
            if stop == run.stop:
                outgoing.run += 1
        return True

    def _send_some(self, path: RtpPath, outgoing: _Outgoing, sheet: Sheet, stop: int, now_s: float) -> bool:
        """Send the packets of a run from where it stands up to `stop`; False: the socket is full."""
        run = sheet.runs[outgoing.run]
        some = sheet.packets[outgoing.sent : stop]
        datagrams = path.protect(
            sheet.data,
            some,
            sequence=(outgoing.first + outgoing.sent) & 0xFFFF,
            timestamp=outgoing.timestamp,
            extension=self._extension.at(now_s, outgoing.packets.captured_ntp),
        )
        left = self._hand_over(path, datagrams, run, len(some))
        if left:
            size_bytes = min(len(datagrams), left * run.segment_bytes)
            outgoing.sent, outgoing.left_s = outgoing.sent + left, now_s
            self._left(size_bytes)
            self._packet_count += left
            self._octet_count += size_bytes - left * (path.header_bytes + path.tag_bytes)
            path.report(outgoing.packets.captured_ntp, outgoing.timestamp, self._packet_count, self._octet_count, now_s)
        return left == len(some)

    def _hand_over(self, path: RtpPath, datagrams: memoryview, run: Run, count: int) -> int:
        """To the kernel or the relay; how many were taken. What fails but for want of room is as a lost packet."""
        if count > 1 and path.segmentation and path.socket is not None:
            try:
                path.socket.sendmsg((datagrams,), run.ancillary, 0, path.address)
            except OSError as exc:
                if exc.errno in _FULL:
                    return 0
                if exc.errno not in _NO_SEGMENTATION:
                    return self._failed(exc, count)
                path.segmentation = False
                self._counters["segmentation_refused"] += 1
            else:
                return count
        for number in range(count):
            try:
                path.send_datagram(datagrams[number * run.segment_bytes : (number + 1) * run.segment_bytes])
            except OSError as exc:
                if exc.errno in _FULL:
                    return number
                self._failed(exc, 1)
        return count

    def _failed(self, exc: OSError, count: int) -> int:
        # Whether the viewer is gone is told by ICE.
        log.debug("datagrams were not sent: %s", exc)
        self._counters["datagrams_failed"] += count
        return count

    def _left(self, size_bytes: int) -> None:
        self._pacer.sent(size_bytes)
        self._sent_bytes += size_bytes


class HeaderExtension:
    """The header extension of one viewer: a fixed part, and two times. Source: RFC 8285, 4.2 (one-byte form)."""

    MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
    ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
    PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
    ABS_CAPTURE_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"

    def __init__(self, ids: dict[str, int], mid: str, playout_delay_ms: tuple[int, int]) -> None:
        fixed = b""
        if self.MID in ids and 0 < len(mid) <= _MID_BYTES:
            fixed += bytes([ids[self.MID] << 4 | len(mid) - 1]) + mid.encode()
        if self.PLAYOUT_DELAY in ids:
            lowest, highest = (delay_ms // 10 for delay_ms in playout_delay_ms)
            fixed += bytes([ids[self.PLAYOUT_DELAY] << 4 | 2]) + (lowest << 12 | highest).to_bytes(3, "big")
        self._send_id, self._capture_id = ids.get(self.ABS_SEND_TIME), ids.get(self.ABS_CAPTURE_TIME)
        size = len(fixed) + 4 * (self._send_id is not None) + 9 * (self._capture_id is not None)
        words = -(-size // 4)
        self.bytes = 4 + 4 * words if size else 0
        self._fixed = struct.pack("!HH", _EXTENSION_PROFILE, words) + fixed if size else b""

    def at(self, now_s: float, captured_ntp: int) -> bytes:
        """For packets that leave at `now_s` of the monotonic clock: abs-send-time is told from one to the next.

        Shorter than `bytes` where padding follows.
        """
        made = self._fixed
        if self._send_id is not None:
            made += (self._send_id << 28 | 2 << 24 | int(now_s * (1 << 18)) & 0xFFFFFF).to_bytes(4, "big")
        if self._capture_id is not None:
            made += (self._capture_id << 68 | 7 << 64 | captured_ntp).to_bytes(9, "big")
        return made
