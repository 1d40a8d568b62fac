"""Everything that the project needs of the private parts of aiortc and aioice, and nothing else.

Pinned in pyproject.toml to the versions that this was read against: aiortc 1.16, aioice 0.13.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aioice.candidate import Candidate as IceCandidate
from aioice.ice import CandidatePair, Connection, StunProtocol, relayed_candidate, server_reflexive_candidate
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender

_absent: str | None = None
try:
    from aioice.turn import TurnClientMixin, TurnStreamMixin, TurnTransport
    from aiortc.codecs import HEADER_EXTENSIONS, is_rtx
    from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
    from aiortc.rtp import (
        RTCP_SR,
        AnyRtcpPacket,
        RtcpByePacket,
        RtcpPsfbPacket,
        RtcpRrPacket,
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
    from collections.abc import Callable, Iterator, Sequence

    from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters

    from edge.core.candidate import Candidate
    from edge.streaming.ice_servers import StunServer, TurnServer


def on_keyframe_request(sender: RTCRtpSender, wish: Callable[[], None]) -> None:
    """Hand PLI and FIR on; aiortc's own flag for them is read only where it encodes itself."""
    sender._send_keyframe = wish  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class LocalCandidate:
    """A candidate of ours, as it is signalled."""

    line: str
    type: str


class IceAgent:
    """The ICE connection behind a peer: candidates can be added to both sides while it runs.

    aiortc gathers once, before its answer; here that is host candidates only, and what STUN and TURN
    servers give is added to the running agent.
    """

    def __init__(self, pc: RTCPeerConnection) -> None:
        transport = pc.getTransceivers()[0].receiver.transport.transport
        self._connection: Connection = transport._connection

    async def add_remote(self, candidate: Candidate) -> None:
        """Add a candidate of the browser's; never the end mark: the session's own deadline ends a hopeless search."""
        await self._connection.add_remote_candidate(
            IceCandidate(
                foundation=candidate.foundation,
                component=1,
                transport="udp",
                priority=candidate.priority,
                host=candidate.host,
                port=candidate.port,
                type=candidate.type,
            ),
        )

    async def reflexive(self, server: StunServer) -> list[LocalCandidate]:
        """Ask a STUN server from the first IPv4 host socket.

        Raises: OSError, aioice.stun.TransactionError: no answer. Bound it with a deadline, it may try for long.
        """
        for protocol in list(self._connection._protocols):
            host = protocol.local_candidate
            if host.type == "host" and ":" not in host.host:
                found, _ = await server_reflexive_candidate(protocol, (server.host, server.port))
                return self._added(found)
        return []

    async def relayed(self, server: TurnServer) -> list[LocalCandidate]:
        """Allocate on a TURN server, and pair the relay with every candidate of the browser so far.

        Raises: OSError, aioice.stun.TransactionError: no allocation. Bound it with a deadline.
        """
        connection = self._connection
        found, protocol = await relayed_candidate(
            component=1,
            hide_related_address=False,
            protocol_factory=lambda: StunProtocol(connection),
            turn_server=(server.host, server.port),
            turn_username=server.username,
            turn_password=server.password.get_secret_value(),
            turn_ssl=server.tls,
            turn_transport=server.transport,
        )
        if connection._closing or connection._check_list_done:
            await protocol.close()
            return []
        connection._protocols.append(protocol)
        for remote in connection._remote_candidates:
            connection._pair_remote_candidate(remote)
        connection.sort_check_list()
        return self._added(found)

    @property
    def settled(self) -> bool:
        """Whether a pair was chosen, or the agent closed: more candidates are of no use."""
        return bool(self._connection._closing or self._connection._check_list_done)

    @property
    def path(self) -> str | None:
        """The chosen pair as `local/remote` candidate types; None while there is none."""
        pair = self._connection._nominated.get(1)
        return f"{pair.local_candidate.type}/{pair.remote_candidate.type}" if pair else None

    def _added(self, found: IceCandidate) -> list[LocalCandidate]:
        self._connection._local_candidates.append(found)
        return [LocalCandidate(f"candidate:{found.to_sdp()}", found.type)]


# The sender of our own.

_EXTENSIONS = (
    (12, "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"),
    (13, "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"),
)
_REMB_FMT = 15
_VERSION, _EXTENDED = 0x80, 0x10
_SENDER_REPORT = struct.Struct("!BBHIQIII")
_REPORT_S = 1.0
_RTT_MOST_S = 0.5
_EVENTS = ("rtp_started", "rtp_exited", "rtcp_started", "rtcp_exited")
_COUNTS = ("packet_count", "octet_count", "lsr", "lsr_time", "rtt")
_SENDER_PARTS = (
    *("_ssrc", "_rtx_ssrc", "_run_rtp", "_run_rtcp", "_retransmit", "_handle_rtcp_packet", "_send_rtcp"),
    *(f"_RTCRtpSender__{name}" for name in _EVENTS + _COUNTS),
)


def missing_for_own_sender() -> str | None:
    """What this project's sender needs of aiortc, aioice or pylibsrtp and does not find as it knows it; None: nothing.

    Looks at a real connection that goes nowhere, and protects a packet in place. In a running event loop.
    """
    if _absent is not None:
        return _absent
    try:
        return next(_differences(), None)
    except Exception as exc:  # noqa: BLE001  whatever it is, the stock sender can do without
        return f"{type(exc).__name__}: {exc}"


def _differences() -> Iterator[str]:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender: Any = pc.addTransceiver("video", direction="sendonly").sender
    yield from (f"RTCRtpSender.{name}" for name in _SENDER_PARTS if not hasattr(sender, name))
    dtls = sender.transport
    yield from (f"RTCDtlsTransport.{name}" for name in ("_tx_srtp", "_ssl") if not hasattr(dtls, name))
    if not isinstance(dtls.transport._connection._nominated, dict):
        yield "Connection._nominated"
    if not hasattr(CandidatePair, "remote_addr"):
        yield "CandidatePair.remote_addr"
    for function, name in (
        (RTCRtpSender.send, "_run_rtp"),
        (RTCRtpSender.send, "_run_rtcp"),
        (RTCRtpSender._handle_rtcp_packet, "_retransmit"),
        (CandidatePair.__init__, "protocol"),
        (TurnTransport.__init__, "_TurnTransport__inner_protocol"),
        (TurnClientMixin.__init__, "peer_to_channel"),
        (TurnClientMixin.__init__, "channel_refresh_at"),
    ):
        if name not in function.__code__.co_names:
            yield f"{name} in {function.__qualname__}"
    if not _protects_in_place():
        yield "srtp_protect"


def _protects_in_place() -> bool:
    key = bytes(range(30))
    packet = bytes([0x80, 102, 0, 1]) + bytes(8) + b"a payload"
    ways = [
        Session(Policy(key=key, ssrc_type=way, srtp_profile=Policy.SRTP_PROFILE_AES128_CM_SHA1_80))
        for way in (Policy.SSRC_ANY_OUTBOUND, Policy.SSRC_ANY_INBOUND)
    ]
    memory, length = ffi.new("char[]", len(packet) + 10), ffi.new("int *")
    ffi.buffer(memory)[: len(packet)] = packet
    length[0] = len(packet)
    failed = lib.srtp_protect(ways[0]._srtp[0], memory, length)
    return not failed and ways[1].unprotect(bytes(ffi.buffer(memory)[: length[0]])) == packet


def offer_extensions() -> None:
    """Let aiortc take playout-delay and abs-capture-time where a browser offers them; once for the process."""
    known = {extension.uri for extension in HEADER_EXTENSIONS["video"]}
    for number, uri in _EXTENSIONS:
        if uri not in known:
            HEADER_EXTENSIONS["video"].append(RTCRtpHeaderExtensionParameters(id=number, uri=uri))


class OwnSender(Protocol):
    """What takes the place of aiortc's packetizing and sending; see rtp_sender.py."""

    def connect(self, path: RtpPath) -> None: ...

    def retransmit(self, sequence: int) -> None: ...

    def estimate(self, bitrate_bps: int) -> None: ...

    def lost(self, share: float) -> None: ...

    def fail(self) -> None: ...

    def close(self) -> None: ...


class _Workspace:
    """Where packets are protected, one run after the other, for all viewers: memory that stays in the cache."""

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
    """A connected peer's way out: its numbers, its protection and its socket. Event loop only."""

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
        # More than 14 do not fit the one-byte form (RFC 8285, 4.2).
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
        self.wear(0)
        self._pair: Any = None
        self._relay: _Relay | None = None
        self.socket: socket.socket | None = None
        """Where the kernel can be handed a run of packets at once."""
        self.segmentation = True
        """Until it refused."""

    def wear(self, extension_bytes: int) -> None:
        """How long the header extension of each packet is, with its own header."""
        self._header = struct.Struct(f"!BBHII{extension_bytes}s")
        self._first_byte = _VERSION | (_EXTENDED if extension_bytes else 0)

    @property
    def header_bytes(self) -> int:
        """Of each packet, extension included."""
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
        """These packets of a sheet (place, size without the tag, marker bit), with their headers, protected.

        What comes back is good until the next call, of any path.
        """
        work, srtp = _workspace, self._srtp
        first_byte, pack_into = self._first_byte, self._header.pack_into
        begin, end = packets[0][0], packets[-1][0] + packets[-1][1] + self.tag_bytes
        if end > len(work.view):
            work.grow(end * 5 // 4)
        view, memory, length = work.view, work.memory, work.length
        view[begin:end] = data[begin:end]
        srtp_protect, payload_type, ssrc = lib.srtp_protect, self.payload_type, self.ssrc
        # The one loop that runs for each packet of each viewer: no call of our own in it.
        for offset, plain_bytes, marker in packets:
            pack_into(view, offset, first_byte, payload_type | marker, sequence, timestamp, ssrc, extension)
            length[0] = plain_bytes
            if srtp_protect(srtp, memory + offset, length):
                raise ConnectionError("SRTP did not take a packet")
            sequence = (sequence + 1) & 0xFFFF
        return view[begin:end]

    def protect_again(
        self, payload: bytes, *, marker: int, sequence: int, timestamp: int, extension: bytes, original: int
    ) -> memoryview:
        """As `protect`, of one packet that was sent as `original`. Source: RFC 4588, 4."""
        assert self.rtx_payload_type is not None
        kind = self.rtx_payload_type | marker
        header = self._header.pack(self._first_byte, kind, sequence, timestamp, self.rtx_ssrc, extension)
        packet = header + original.to_bytes(2, "big") + payload
        work = _workspace
        work.view[: len(packet)] = packet
        work.length[0] = len(packet)
        if lib.srtp_protect(self._srtp, work.memory, work.length):
            raise ConnectionError("SRTP did not take a packet")
        return work.view[: work.length[0]]

    @property
    def open(self) -> bool:
        """Whether a packet can leave; looks at the chosen pair, which may have changed."""
        pair = self._nominated.get(1)
        if pair is not self._pair:
            self._pair = pair
            self._relay = self.socket = None
            self.segmentation = True
            if pair is not None:
                self.address: tuple[str, int] = pair.remote_addr
                transport = pair.protocol.transport
                if isinstance(transport, TurnTransport):
                    self._relay = _Relay(transport, self.address)
                else:
                    self.socket = transport.get_extra_info("socket")._sock
        return pair is not None

    def send_datagram(self, datagram: memoryview) -> None:
        """Send a protected packet.

        Raises: BlockingIOError: the socket, or what waits for the relay, is full. OSError.
        """
        if self.socket is not None:
            self.socket.sendto(datagram, self.address)
        elif self._relay is not None:
            self._relay.send(datagram)

    @property
    def rtt_s(self) -> float:
        """Round-trip time by the viewer's reports; 0 before there is one. A wall clock that is set can spoil it."""
        sender: Any = self._sender
        return min(max(0.0, sender._RTCRtpSender__rtt or 0.0), _RTT_MOST_S)

    def report(self, ntp: int, timestamp: int, packets: int, octets: int, now_s: float) -> None:
        """Say what was sent so far, to the viewer about once a second: these two times are of the same moment.

        aiortc's reports have a task and a timer for each viewer, which wake the processor for nothing else.
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


class _Relay:
    """A TURN server as a way out: aioice makes a task of each datagram and lets any number wait; this does neither."""

    _WAITING_BYTES = 64 * 1024
    """A third of a second at 1.5 Mbit/s."""
    _UNSENT_BYTES = 32 * 1024
    _ASK_S = 1.0

    def __init__(self, transport: TurnTransport, address: tuple[str, int]) -> None:
        self._transport = transport
        self._address = address
        self._protocol: Any = transport._TurnTransport__inner_protocol  # type: ignore[attr-defined]
        self._asked_at_s = 0.0
        if isinstance(self._protocol, TurnStreamMixin):
            # Over TCP and TLS: a slow path is to be seen here, and not to fill the kernel's megabytes first.
            sock = self._protocol.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._UNSENT_BYTES)

    def send(self, datagram: memoryview) -> None:
        """Raises: BlockingIOError: so much waits already. ConnectionError: the relay is gone."""
        protocol = self._protocol
        if protocol.transport.is_closing():
            raise ConnectionError("the relay is gone")
        if protocol.transport.get_write_buffer_size() > self._WAITING_BYTES:
            raise BlockingIOError(errno.EAGAIN, "the relay is slow")
        channel, now_s = protocol.peer_to_channel.get(self._address), time.time()
        bound = channel is not None and now_s <= protocol.channel_refresh_at[channel]
        if not bound and now_s > self._asked_at_s + self._ASK_S:
            self._asked_at_s = now_s
            self._transport.sendto(bytes(datagram), self._address)  # which binds the channel, in a task
        elif channel is None:
            raise BlockingIOError(errno.EAGAIN, "the relay binds its channel")
        else:
            protocol._send(struct.pack("!HH", channel, len(datagram)) + datagram)


def take_over(sender: RTCRtpSender, own: OwnSender) -> None:
    """Put a sender of our own in the place of aiortc's two tasks. Before the connection is made."""
    inner: Any = sender
    taken = _TakenOver(inner, own)
    inner.send, inner._run_rtp, inner._run_rtcp = taken.send, taken.run_rtp, taken.run_rtcp
    inner._retransmit, inner._handle_rtcp_packet = taken.retransmit, taken.handle_rtcp


class _TakenOver:
    """What stands in a sender in the place of aiortc's methods."""

    def __init__(self, sender: Any, own: OwnSender) -> None:  # noqa: ANN401  its private parts
        self._sender = sender
        self._own = own
        self._stock_send, self._stock_handle_rtcp = sender.send, sender._handle_rtcp_packet

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        self._parameters = parameters
        await self._stock_send(parameters)

    async def run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self._sender._RTCRtpSender__rtp_started.set()
        try:
            self._own.connect(RtpPath(self._sender, codec, self._parameters))
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass
        except Exception:  # noqa: BLE001  told as a failure
            self._own.fail()
        finally:
            self._own.close()
            self._sender._RTCRtpSender__rtp_exited.set()

    async def run_rtcp(self) -> None:
        """No more than the farewell: reports go with the pictures."""
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
                    self._own.lost(report.fraction_lost / 256)
        if not isinstance(packet, RtcpPsfbPacket) or packet.fmt != _REMB_FMT:
            await self._stock_handle_rtcp(packet)
            return
        try:
            bitrate_bps, ssrcs = unpack_remb_fci(packet.fci)
        except ValueError:
            return
        if self._sender._ssrc in ssrcs:
            _guarded(self._own, self._own.estimate, bitrate_bps)


def _guarded(own: OwnSender, act: Callable[[int], None], given: int) -> None:
    """What is raised here would end aiortc's whole connection without a word."""
    try:
        act(given)
    except Exception:  # noqa: BLE001  told as a failure
        own.fail()
