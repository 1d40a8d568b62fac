"""The sending of RTP, RTCP and SRTP: all use of private parts of aiortc and pylibsrtp.

Written against aiortc 1.16 and pylibsrtp 1.0, to which pyproject.toml pins them. aiortc_ice.py has the parts for ICE.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from typing import TYPE_CHECKING, Any, Protocol

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender

from edge.streaming.aiortc_ice import Relay, absent, ice_differences

_absent = absent
try:
    from aioice.turn import TurnTransport
    from aiortc.codecs import HEADER_EXTENSIONS, is_rtx
    from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
    from aiortc.rtp import (
        RTCP_SR,
        AnyRtcpPacket,
        RtcpByePacket,
        RtcpPsfbPacket,
        RtcpRrPacket,
        RtcpRtpfbPacket,
        RtcpSdesPacket,
        RtcpSourceInfo,
        RtcpSrPacket,
        unpack_remb_fci,
    )
    from pylibsrtp import Policy, Session
    from pylibsrtp._binding import ffi, lib
except ImportError as exc:
    _absent = str(exc)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters


def on_keyframe_request(sender: RTCRtpSender, callback: Callable[[], None]) -> None:
    """Call back for each PLI and FIR; aiortc reads its own flag only when it encodes itself."""
    sender._send_keyframe = callback  # type: ignore[method-assign]


_EXTENSIONS = (
    (12, "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"),
    (13, "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"),
)
_REMB_FMT = 15
_VERSION, _EXTENDED = 0x80, 0x10
_SENDER_REPORT = struct.Struct("!BBHIQIII")
_REPORT_S = 1.0
_NACKED_PACKETS = 300
"""Limit of the lost packets that one RTCP packet may name: each costs a search, and few can be sent again at once."""
_MAX_RTT_S = 0.5
_EVENTS = ("rtp_started", "rtp_exited", "rtcp_started", "rtcp_exited")
_COUNTS = ("packet_count", "octet_count", "lsr", "lsr_time", "rtt")
_SENDER_PARTS = (
    *("_ssrc", "_rtx_ssrc", "_run_rtp", "_run_rtcp", "_retransmit", "_handle_rtcp_packet", "_send_rtcp"),
    *(f"_RTCRtpSender__{name}" for name in _EVENTS + _COUNTS),
)


def missing_for_own_sender() -> str | None:
    """Return the first private part of aiortc, aioice or pylibsrtp that this project's sender needs and does not find.

    None: all parts were found. Inspects an unconnected connection and protects a packet. Needs a running event loop.
    """
    if _absent is not None:
        return _absent
    try:
        return next(_differences(), None)
    except Exception as exc:  # noqa: BLE001  the stock sender works without these parts
        return f"{type(exc).__name__}: {exc}"


def _differences() -> Iterator[str]:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender: Any = pc.addTransceiver("video", direction="sendonly").sender
    yield from (f"RTCRtpSender.{name}" for name in _SENDER_PARTS if not hasattr(sender, name))
    dtls = sender.transport
    yield from (f"RTCDtlsTransport.{name}" for name in ("_tx_srtp", "_ssl") if not hasattr(dtls, name))
    for function, name in (
        (RTCRtpSender.send, "_run_rtp"),
        (RTCRtpSender.send, "_run_rtcp"),
        (RTCRtpSender._handle_rtcp_packet, "_retransmit"),
    ):
        if name not in function.__code__.co_names:
            yield f"{name} in {function.__qualname__}"
    yield from ice_differences(dtls.transport._connection)
    if not _protects_in_place():
        yield "srtp_protect"


def _protects_in_place() -> bool:
    key = bytes(range(30))
    packet = bytes([0x80, 102, 0, 1]) + bytes(8) + b"a payload"
    sessions = [
        Session(Policy(key=key, ssrc_type=direction, srtp_profile=Policy.SRTP_PROFILE_AES128_CM_SHA1_80))
        for direction in (Policy.SSRC_ANY_OUTBOUND, Policy.SSRC_ANY_INBOUND)
    ]
    memory, length = ffi.new("char[]", len(packet) + 10), ffi.new("int *")
    ffi.buffer(memory)[: len(packet)] = packet
    length[0] = len(packet)
    failed = lib.srtp_protect(sessions[0]._srtp[0], memory, length)
    return not failed and sessions[1].unprotect(bytes(ffi.buffer(memory)[: length[0]])) == packet


def register_extensions() -> None:
    """Make aiortc accept playout-delay and abs-capture-time in offers. Idempotent; affects the whole process."""
    known = {extension.uri for extension in HEADER_EXTENSIONS["video"]}
    for number, uri in _EXTENSIONS:
        if uri not in known:
            HEADER_EXTENSIONS["video"].append(RTCRtpHeaderExtensionParameters(id=number, uri=uri))


class OwnSender(Protocol):
    """Replaces aiortc's packetizing and sending; see rtp_sender.py."""

    def connect(self, path: RtpPath) -> None: ...

    def retransmit(self, sequence: int) -> None: ...

    def report_bandwidth(self, bitrate_bps: int) -> None: ...

    def report_loss(self, fraction: float) -> None: ...

    def fail(self) -> None: ...

    def end(self) -> None: ...


class _Workspace:
    """Memory in which packets are protected, shared by all viewers so that it stays in the CPU's cache."""

    def __init__(self) -> None:
        self.length = ffi.new("int *")
        self.grow(64 * 1024)

    def grow(self, size_bytes: int) -> None:
        self.memory = ffi.new("char[]", size_bytes)
        self.view = memoryview(ffi.buffer(self.memory))


_workspace: _Workspace
if _absent is None:
    _workspace = _Workspace()


class RtpPath:
    """A connected peer's RTP identifiers, SRTP session and socket. Event loop only."""

    def __init__(self, sender: RTCRtpSender, codec: RTCRtpCodecParameters, parameters: RTCRtpSendParameters) -> None:
        self._sender = sender
        self._dtls = sender.transport
        self.ssrc: int = sender._ssrc
        self.rtx_ssrc: int = sender._rtx_ssrc
        payload_type = codec.payloadType
        assert payload_type is not None
        self.payload_type: int = payload_type
        self.rtx_payload_type: int | None = next(
            (c.payloadType for c in parameters.codecs if is_rtx(c) and c.parameters.get("apt") == codec.payloadType),
            None,
        )
        # The one-byte form allows 1 to 14 (RFC 8285, 4.2).
        self.extensions: dict[str, int] = {
            extension.uri: extension.id for extension in parameters.headerExtensions if 1 <= extension.id <= 14
        }
        self.mid: str = parameters.muxId
        connection: Any = self._dtls._ssl
        self.tag_bytes = 16 if b"GCM" in connection.get_selected_srtp_profile() else 10
        self._srtp = self._dtls._tx_srtp._srtp[0]
        self._nominated = self._dtls.transport._connection._nominated
        cname = RtcpSourceInfo(ssrc=self.ssrc, items=[(1, (parameters.rtcp.cname or "").encode())])
        self._description = bytes(RtcpSdesPacket(chunks=[cname]))
        self._report_at_s = 0.0
        self.set_extension_size(0)
        self._pair: Any = None
        self._relay: Relay | None = None
        self.socket: socket.socket | None = None
        """The UDP socket; None: the path is a relay, or there is none yet."""
        self.segmentation = True
        """Whether the kernel splits batches of packets (UDP_SEGMENT); False after it refused."""

    def set_extension_size(self, size_bytes: int) -> None:
        """Set the size of the header extension that each packet carries, including the extension's own header."""
        self._header = struct.Struct(f"!BBHII{size_bytes}s")
        self._first_byte = _VERSION | (_EXTENDED if size_bytes else 0)

    @property
    def header_bytes(self) -> int:
        """The size of each packet's header, with the extension."""
        return self._header.size

    def protect(
        self,
        data: memoryview,
        packets: Sequence[tuple[int, int, int]],
        *,
        sequence: int,
        timestamp: int,
        extension: bytes,
    ) -> memoryview:
        """Write the headers of these packets of a `PacketBuffer` and protect them. `sequence`: of the first packet.

        The returned memory is valid until the next call, on any path.
        """
        work, srtp = _workspace, self._srtp
        first_byte, pack_into = self._first_byte, self._header.pack_into
        begin, end = packets[0][0], packets[-1][0] + packets[-1][1] + self.tag_bytes
        if end > len(work.view):
            work.grow(end * 5 // 4)
        view, memory, length = work.view, work.memory, work.length
        view[begin:end] = data[begin:end]
        srtp_protect, payload_type, ssrc = lib.srtp_protect, self.payload_type, self.ssrc
        # This loop runs for every packet of every viewer: no Python call in it.
        for offset, plain_bytes, marker in packets:
            pack_into(view, offset, first_byte, payload_type | marker, sequence, timestamp, ssrc, extension)
            length[0] = plain_bytes
            if srtp_protect(srtp, memory + offset, length):
                raise ConnectionError("SRTP rejected a packet")
            sequence = (sequence + 1) & 0xFFFF
        return view[begin:end]

    def protect_again(self, payload: bytes, marker: int, sequence: int, timestamp: int, extension: bytes) -> memoryview:
        """Make and protect a packet once more, with the header and payload that it had.

        Raises: ConnectionError: it is not among the last 1024 packets, for which aiortc allows this.
        """
        second_byte = self.payload_type | marker
        header = self._header.pack(self._first_byte, second_byte, sequence, timestamp, self.ssrc, extension)
        return self._protect_one(header + payload)

    def protect_rtx(
        self, payload: bytes, marker: int, sequence: int, timestamp: int, extension: bytes, *, original: int
    ) -> memoryview:
        """Make and protect an RTX packet for the packet with the sequence number `original`. Source: RFC 4588, 4."""
        assert self.rtx_payload_type is not None
        second_byte = self.rtx_payload_type | marker
        header = self._header.pack(self._first_byte, second_byte, sequence, timestamp, self.rtx_ssrc, extension)
        return self._protect_one(header + original.to_bytes(2, "big") + payload)

    def _protect_one(self, packet: bytes) -> memoryview:
        work = _workspace
        work.view[: len(packet)] = packet
        work.length[0] = len(packet)
        if lib.srtp_protect(self._srtp, work.memory, work.length):
            raise ConnectionError("SRTP rejected a packet")
        return work.view[: work.length[0]]

    def refresh(self) -> bool:
        """Follow ICE's chosen pair, which may have changed. Returns whether packets can be sent."""
        pair = self._nominated.get(1)
        if pair is not self._pair:
            self._pair = pair
            self._relay = self.socket = None
            self.segmentation = True
            if pair is not None:
                self.address: tuple[str, int] = pair.remote_addr
                transport = pair.protocol.transport
                if isinstance(transport, TurnTransport):
                    self._relay = Relay(transport, self.address)
                else:
                    self.socket = transport.get_extra_info("socket")._sock
        return pair is not None

    def send_datagram(self, datagram: memoryview | bytes) -> None:
        """Send a protected packet.

        Raises: BlockingIOError: the socket or the relay's write buffer is full. OSError.
        """
        if self.socket is not None:
            self.socket.sendto(datagram, self.address)
        elif self._relay is not None:
            self._relay.send(datagram)

    @property
    def rtt_s(self) -> float:
        """The round-trip time from the viewer's reports; 0 before the first. Wrong when the wall clock was just set."""
        sender: Any = self._sender
        return min(max(0.0, sender._RTCRtpSender__rtt or 0.0), _MAX_RTT_S)

    def send_report(self, ntp: int, timestamp: int, packets: int, octets: int, now_s: float) -> None:
        """Update the statistics, and send a sender report about once per second. `ntp`, `timestamp`: the same moment.

        aiortc's own reports would need a task and a timer per viewer.
        """
        sender: Any = self._sender
        sender._RTCRtpSender__packet_count = packets
        sender._RTCRtpSender__octet_count = octets
        if now_s < self._report_at_s:
            return
        self._report_at_s = now_s + _REPORT_S * (0.5 + random.random())  # noqa: S311
        sender._RTCRtpSender__lsr = ntp >> 16 & 0xFFFFFFFF
        sender._RTCRtpSender__lsr_time = time.time()
        counts = packets & 0xFFFFFFFF, octets & 0xFFFFFFFF
        report = _SENDER_REPORT.pack(_VERSION, RTCP_SR, 6, self.ssrc, ntp, timestamp, *counts) + self._description
        with contextlib.suppress(OSError):
            self.send_datagram(memoryview(self._dtls._tx_srtp.protect_rtcp(report)))


def take_over(sender: RTCRtpSender, own: OwnSender) -> None:
    """Replace aiortc's sending tasks by our own sender. Call it before the connection is made."""
    inner: Any = sender
    methods = _Replacement(inner, own)
    inner.send, inner._run_rtp, inner._run_rtcp = methods.send, methods.run_rtp, methods.run_rtcp
    inner._retransmit, inner._handle_rtcp_packet = methods.retransmit, methods.handle_rtcp


class _Replacement:
    """The methods that replace those of aiortc's sender."""

    def __init__(self, sender: Any, own: OwnSender) -> None:  # noqa: ANN401  its private parts
        self._sender = sender
        self._own = own
        self._stock_send, self._stock_handle_rtcp = sender.send, sender._handle_rtcp_packet

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        self._parameters = parameters
        try:
            await self._stock_send(parameters)
        except Exception:  # noqa: BLE001  logged by `fail`
            self._own.fail()

    async def run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self._sender._RTCRtpSender__rtp_started.set()
        try:
            self._own.connect(RtpPath(self._sender, codec, self._parameters))
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass
        except Exception:  # noqa: BLE001  logged by `fail`
            self._own.fail()
        finally:
            self._own.end()
            self._sender._RTCRtpSender__rtp_exited.set()

    async def run_rtcp(self) -> None:
        """Send only the BYE at the end; sender reports are sent with the pictures."""
        self._sender._RTCRtpSender__rtcp_started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await self._sender._send_rtcp([RtcpByePacket(sources=[self._sender._ssrc])])
        finally:
            self._sender._RTCRtpSender__rtcp_exited.set()

    async def retransmit(self, sequence_number: int) -> None:
        _guarded(self._own, self._own.retransmit, sequence_number)

    async def handle_rtcp(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._sender._ssrc:
                    self._own.report_loss(report.fraction_lost / 256)
        if isinstance(packet, RtcpRtpfbPacket):
            del packet.lost[_NACKED_PACKETS:]
        if not isinstance(packet, RtcpPsfbPacket) or packet.fmt != _REMB_FMT:
            await self._stock_handle_rtcp(packet)
            return
        try:
            bitrate_bps, ssrcs = unpack_remb_fci(packet.fci)
        except ValueError:
            return
        if self._sender._ssrc in ssrcs:
            _guarded(self._own, self._own.report_bandwidth, bitrate_bps)


def _guarded(own: OwnSender, method: Callable[[int], None], value: int) -> None:
    """Call a method of the sender. An exception would silently end aiortc's whole connection."""
    try:
        method(value)
    except Exception:  # noqa: BLE001  logged by `fail`
        own.fail()
