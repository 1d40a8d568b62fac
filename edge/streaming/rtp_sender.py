"""This project's own sender: sends one viewer's packets from shared payloads, with little work per packet."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import struct
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
    from edge.streaming.aiortc_rtp import RtpPath
    from edge.streaming.packets import Batch, PacketBuffer, Packetizer, Packets

log = logging.getLogger(__name__)

_EXTENSION_PROFILE = 0xBEDE
_HISTORY_S = 1.5
_RESENT_PER_S, _RESENT_BURST = 250, 300
"""10 % loss at 4 Mbit/s is 40 packets per second. A viewer that requests everything again gets no second stream."""
_RESEND_INTERVAL_S = 0.05
_FULL = {errno.EAGAIN, errno.EINTR, errno.ENOBUFS}
_MID_BYTES = 6
"""The longest MID that is sent. Browsers use 0, 1 or video, and each packet carries it."""
_NO_SEGMENTATION = {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}


class _Outgoing:
    """An access unit that is being sent to one viewer, kept afterwards for retransmissions."""

    __slots__ = ("batch", "extensions", "first_sequence", "packets", "resent_s", "sent", "sent_s", "timestamp")

    def __init__(self, packets: Packets, first_sequence: int, timestamp: int, now_s: float) -> None:
        self.packets = packets
        self.first_sequence = first_sequence
        self.timestamp = timestamp
        self.sent_s = now_s
        """When its last packet was sent, so far."""
        self.resent_s: dict[int, float] = {}
        """When each packet was last sent again."""
        self.extensions: list[tuple[int, bytes]] = []
        """The header extensions that were sent, each with the number of the first packet that carried it.

        Only for a viewer without RTX.
        """
        self.batch = 0
        self.sent = 0
        """The number of packets sent; the rest was dropped if the access unit is finished."""


class RtpSender:
    """One viewer's lane, pacer and retransmissions. Event loop only; never blocks, never raises.

    Access units may be pushed before there is a path. If the socket is full, the rest of the access unit is dropped,
    and the viewer continues at the next keyframe.
    `counters` counts `frames_cut` (the socket was full), `segmentation_refused`, `retransmissions`,
    `packets_not_resent`, `datagrams_failed`, `sender_bugs`.
    """

    ended: Callable[[], None] = staticmethod(lambda: None)
    """Called once when sending ended by a bug, or because aiortc stopped it."""

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
        self._current: tuple[_Outgoing, PacketBuffer] | None = None
        self._history: deque[_Outgoing] = deque()
        # In the lower half: a receiver that misses the first packets and an early roll-over cannot decrypt.
        self._sequence = secrets.randbelow(1 << 15)
        self._rtx_sequence = secrets.randbelow(1 << 15)
        self._timestamp_base = secrets.randbits(32)
        self._packet_count = self._octet_count = self._sent_bytes = 0
        self._estimate = PathEstimate()
        self._estimated = False
        self._encode_bps = 0.0
        self._resending = Budget(per_s=_RESENT_PER_S, burst=_RESENT_BURST)
        self._lookups = Budget(per_s=2 * _RESENT_PER_S, burst=2 * _RESENT_BURST)

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        if self._closed:
            return True
        packets = self._packetizer.packets(unit)
        if packets is None:
            self._lane.reset()  # the following pictures depend on this one
            return False
        self._encode_bps = packets.encode_bps
        queued = self._lane.push((packets, pts_90k), keyframe=unit.keyframe)
        if self._path is not None and self._timer is None:
            self._send()
        if queued or self._path is None:
            return queued
        # While older packets wait, or the path is down, a keyframe could only wait, too.
        return self._timer is not None or not self._path.refresh()

    def connect(self, path: RtpPath) -> None:
        """Send on this path from now on."""
        self._path = path
        self._extension = HeaderExtension(path.extensions, path.mid, self._playout_delay_ms)
        path.set_extension_size(self._extension.bytes)
        self._send()

    def report_bandwidth(self, bitrate_bps: int) -> None:
        """Take the viewer's bandwidth estimate (REMB)."""
        now_s = self._loop.time()
        self._estimate.update(bitrate_bps, sent_bytes=self._sent_bytes, encode_bps=self._encode_bps, now_s=now_s)
        self._estimated = True
        self._pacer.set_path(self._estimate.bps(now_s))

    def report_loss(self, fraction: float) -> None:
        """Take the fraction of packets that the viewer reports as lost (0..1)."""
        self._estimate.report_loss(fraction)

    def close(self) -> None:
        """Stop sending. Idempotent."""
        self._closed = True
        self._path = self._current = None
        self._history.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """The engine (aiortc) stopped sending to this viewer. Idempotent."""
        if not self._closed:
            self.close()
            # Later: the hub may be iterating over its senders.
            self._loop.call_soon(self.ended)

    def fail(self) -> None:
        """End sending to this viewer after a bug; called in an exception handler."""
        log.exception("sender failed because of a bug")  # noqa: LOG004
        self._counters["sender_bugs"] += 1
        self.end()

    def retransmit(self, sequence: int) -> None:
        """Send a lost packet again: as an RTX packet (RFC 4588), or unchanged to a viewer without RTX (RFC 4585)."""
        path, now_s = self._path, self._loop.time()
        # Checked first: a viewer that floods the device with requests must not cost the others anything.
        if path is None or not self._lookups.take(now_s) or not path.refresh():
            return
        lost = self._find(sequence, now_s, path.rtt_s)
        # Retransmissions count against the pace, or they would flood a path that loses everything.
        if lost is None or not self._pacer.may_resend(now_s) or not self._resending.take(now_s):
            self._counters["packets_not_resent"] += 1
            return
        outgoing, number = lost
        outgoing.resent_s[number] = now_s
        try:
            datagram = self._retransmission(path, outgoing, number, sequence, now_s)
            path.send_datagram(datagram)
        except OSError:
            self._counters["packets_not_resent"] += 1
        else:
            self._counters["retransmissions"] += 1
            self._count_sent(len(datagram))

    def _retransmission(
        self, path: RtpPath, outgoing: _Outgoing, number: int, sequence: int, now_s: float
    ) -> memoryview:
        """Return the datagram that carries this packet again.

        Raises: ConnectionError: without RTX, it is too old for SRTP.
        """
        payloads = outgoing.packets.payloads
        marker = MARKER if number == len(payloads) - 1 else 0
        if path.rtx_payload_type is None:
            # The same header and payload give the same datagram. A different one under the same sequence number would
            # weaken the encryption (RFC 3711, 9.1; with AES-GCM, RFC 7714, 8.4).
            extension = next(each for first, each in reversed(outgoing.extensions) if first <= number)
            return path.protect_again(payloads[number], marker, sequence, outgoing.timestamp, extension)
        extension = self._extension.at(now_s, outgoing.packets.captured_ntp)
        datagram = path.protect_rtx(
            payloads[number], marker, self._rtx_sequence, outgoing.timestamp, extension, original=sequence
        )
        self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        return datagram

    def _find(self, sequence: int, now_s: float, rtt_s: float) -> tuple[_Outgoing, int] | None:
        """Return a packet's access unit and its index in it; None: too old, never sent, or sent again just now."""
        for outgoing in reversed(self._history):
            number = (sequence - outgoing.first_sequence) & 0xFFFF
            if number < len(outgoing.packets.payloads):
                due_s = outgoing.resent_s.get(number, float("-inf")) + max(_RESEND_INTERVAL_S, rtt_s)
                return (outgoing, number) if number < outgoing.sent and now_s >= due_s else None
        return None

    def _send(self) -> None:
        """Send what the pacer allows now, and set a timer for the rest."""
        self._timer = None
        path = self._path
        try:
            if path is not None and path.refresh():
                now_s = self._loop.time()
                while (current := self._current or self._next_unit(path, now_s)) is not None:
                    if not self._send_unit(path, *current, now_s):
                        return
                    self._current = None
        except Exception:  # noqa: BLE001  logged by `fail`
            self.fail()

    def _next_unit(self, path: RtpPath, now_s: float) -> tuple[_Outgoing, PacketBuffer] | None:
        """Take the next access unit from the lane."""
        item = self._lane.take()
        if item is None:
            return None
        packets, pts_90k = item
        outgoing = _Outgoing(packets, self._sequence, (self._timestamp_base + pts_90k) & 0xFFFFFFFF, now_s)
        self._sequence = (self._sequence + len(packets.payloads)) & 0xFFFF
        history = self._history
        history.append(outgoing)
        while history[0].sent_s < now_s - _HISTORY_S:
            history.popleft()
        buffer = packets.buffer(path.header_bytes, path.tag_bytes)
        if self._estimated:
            self._pacer.set_path(self._estimate.bps(now_s))
        self._pacer.begin(buffer.size_bytes, now_s)
        self._current = outgoing, buffer
        return self._current

    def _send_unit(self, path: RtpPath, outgoing: _Outgoing, buffer: PacketBuffer, now_s: float) -> bool:
        """Send what the pacer allows. Returns whether the access unit is finished: sent, or its rest dropped."""
        while outgoing.batch < len(buffer.batches):
            batch = buffer.batches[outgoing.batch]
            room = self._pacer.room_bytes(now_s)
            if room <= 0:
                self._timer = self._loop.call_later(self._pacer.wait_s(), self._send)
                return False
            stop = min(batch.stop, outgoing.sent + max(1, int(room) // batch.segment_bytes))
            if not self._send_packets(path, outgoing, buffer, stop, now_s):
                # The socket is full. The queued pictures depend on the rest of this one.
                self._counters["frames_cut"] += 1
                self._lane.reset()
                return True
            if stop == batch.stop:
                outgoing.batch += 1
        return True

    def _send_packets(self, path: RtpPath, outgoing: _Outgoing, buffer: PacketBuffer, stop: int, now_s: float) -> bool:
        """Send the next packets of the current batch, up to the index `stop`. False: the socket is full."""
        batch = buffer.batches[outgoing.batch]
        packets = buffer.packets[outgoing.sent : stop]
        extension = self._extension.at(now_s, outgoing.packets.captured_ntp)
        datagrams = path.protect(
            buffer.data,
            packets,
            sequence=(outgoing.first_sequence + outgoing.sent) & 0xFFFF,
            timestamp=outgoing.timestamp,
            extension=extension,
        )
        sent = self._write(path, datagrams, batch, len(packets))
        if sent:
            size_bytes = min(len(datagrams), sent * batch.segment_bytes)
            if path.rtx_payload_type is None:
                outgoing.extensions.append((outgoing.sent, extension))
            outgoing.sent, outgoing.sent_s = outgoing.sent + sent, now_s
            self._count_sent(size_bytes)
            self._packet_count += sent
            self._octet_count += size_bytes - sent * (path.header_bytes + path.tag_bytes)
            path.send_report(
                outgoing.packets.captured_ntp, outgoing.timestamp, self._packet_count, self._octet_count, now_s
            )
        return sent == len(packets)

    def _write(self, path: RtpPath, datagrams: memoryview, batch: Batch, count: int) -> int:
        """Write to the socket or the relay. Returns how many packets were taken; one that fails counts as lost."""
        if count > 1 and path.segmentation and path.socket is not None:
            try:
                path.socket.sendmsg((datagrams,), batch.ancillary, 0, path.address)
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
                path.send_datagram(datagrams[number * batch.segment_bytes : (number + 1) * batch.segment_bytes])
            except OSError as exc:
                if exc.errno in _FULL:
                    return number
                self._failed(exc, 1)
        return count

    def _failed(self, exc: OSError, count: int) -> int:
        # ICE decides whether the viewer is lost.
        log.debug("datagrams not sent count=%d error=%r", count, str(exc))
        self._counters["datagrams_failed"] += count
        return count

    def _count_sent(self, size_bytes: int) -> None:
        self._pacer.sent(size_bytes)
        self._sent_bytes += size_bytes


class HeaderExtension:
    """Formats the RTP header extension of one viewer. Source: RFC 8285, 4.2 (one-byte form)."""

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
        """Return the extension of packets that are sent at `now_s`, without the padding up to `bytes`.

        The monotonic clock is enough for abs-send-time, since receivers use differences only.
        """
        extension = self._fixed
        if self._send_id is not None:
            extension += (self._send_id << 28 | 2 << 24 | int(now_s * (1 << 18)) & 0xFFFFFF).to_bytes(4, "big")
        if self._capture_id is not None:
            extension += (self._capture_id << 68 | 7 << 64 | captured_ntp).to_bytes(9, "big")
        return extension
