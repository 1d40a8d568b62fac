"""Everything that the project needs of the private parts of aiortc and aioice, and nothing else.

Pinned in pyproject.toml to the versions that this was read against: aiortc 1.16, aioice 0.13.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aioice.candidate import Candidate as IceCandidate
from aioice.ice import Connection, StunProtocol, relayed_candidate, server_reflexive_candidate
from aioice.turn import TurnTransport
from aiortc import RTCRtpSender
from aiortc.codecs import HEADER_EXTENSIONS, is_rtx
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
from aiortc.rtp import AnyRtcpPacket, RtcpPsfbPacket, unpack_remb_fci
from pylibsrtp import Session
from pylibsrtp._binding import ffi, lib

if TYPE_CHECKING:
    import socket
    import struct
    from collections.abc import Callable, Coroutine, Sequence

    from aiortc import RTCPeerConnection
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
_SHEET_BYTES = 32 * 1024
_NEEDED = (
    (RTCRtpSender, ("_run_rtp", "_retransmit", "_handle_rtcp_packet", "_send_keyframe", "send", "stop")),
    (RTCDtlsTransport, ("_send_rtp",)),
    (Connection, ("send",)),
    (Session, ("protect",)),
    (lib, ("srtp_protect",)),
)
_NEEDED_WORDS = (
    (
        RTCRtpSender.__init__,
        ("__rtp_started", "__rtp_exited", "__ntp_timestamp", "__packet_count", "_rtx_ssrc", "_ssrc"),
    ),
    (RTCRtpSender.send, ("self._run_rtp(",)),
    (RTCDtlsTransport.__init__, ("_tx_srtp",)),
    (Connection.sendto, ("_nominated", "remote_addr", "protocol")),
    (Session.__init__, ("_srtp",)),
)


def missing_for_own_sender() -> str | None:
    """What this project's sender needs and the installed aiortc, aioice or pylibsrtp has not; None: nothing."""
    for owner, names in _NEEDED:
        for name in names:
            if not hasattr(owner, name):
                return f"{getattr(owner, '__name__', 'libsrtp')}.{name}"
    for function, words in _NEEDED_WORDS:
        source = inspect.getsource(function)
        for word in words:
            if word not in source:
                return f"{word} in {function.__qualname__}"
    return None


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

    def close(self) -> None: ...


class RtpPath:
    """A connected peer's way out: its numbers, its protection and its socket; packets are protected in its buffer."""

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
        self.extensions: dict[str, int] = {extension.uri: extension.id for extension in parameters.headerExtensions}
        self.mid: str = parameters.muxId
        connection: Any = self._dtls._ssl
        self.tag_bytes = 16 if b"GCM" in connection.get_selected_srtp_profile() else 10
        self._srtp = self._dtls._tx_srtp._srtp[0]
        self._length = ffi.new("int *")
        self._protocol: Any = None
        self._grow(_SHEET_BYTES)

    def protect(
        self,
        data: bytes,
        packets: Sequence[tuple[int, int, int]],
        *,
        header: struct.Struct,
        first_byte: int,
        sequence: int,
        timestamp: int,
        extension: bytes,
    ) -> None:
        """Lay these packets (place, size without the tag, marker bit) into `datagrams`, with their headers, protected.

        What was there is overwritten.
        """
        if len(data) > len(self.datagrams):
            self._grow(len(data) * 5 // 4)
        datagrams, memory, length, srtp = self.datagrams, self._memory, self._length, self._srtp
        pack_into, srtp_protect, payload_type, ssrc = header.pack_into, lib.srtp_protect, self.payload_type, self.ssrc
        datagrams[: len(data)] = data
        # The one loop that runs for each packet of each viewer: no call of our own in it.
        for offset, plain_bytes, marker in packets:
            pack_into(datagrams, offset, first_byte, payload_type | marker, sequence, timestamp, ssrc, extension)
            length[0] = plain_bytes
            if srtp_protect(srtp, memory + offset, length):
                raise ConnectionError("SRTP did not take a packet")
            sequence = (sequence + 1) & 0xFFFF

    @property
    def open(self) -> bool:
        """Whether a packet can leave; looks at the chosen pair, which may have changed."""
        pair = self._dtls.transport._connection._nominated.get(1)
        if pair is None:
            return False
        self.address: tuple[str, int] = pair.remote_addr
        if pair.protocol is not self._protocol:
            self._protocol = pair.protocol
            transport = pair.protocol.transport
            # Through TURN each packet gets the relay's own frame.
            self.socket: socket.socket | None = (
                None if isinstance(transport, TurnTransport) else transport.get_extra_info("socket")._sock
            )
        return True

    def send_datagram(self, datagram: memoryview) -> None:
        """Send a protected packet.

        Raises: BlockingIOError: the socket is full. OSError.
        """
        if self.socket is None:
            self._protocol.transport.sendto(bytes(datagram), self.address)
        else:
            self.socket.sendto(datagram, self.address)

    def send(self, packet: bytes) -> None:
        """Protect and send one packet; what does not go is lost."""
        if self.open:
            try:
                self.send_datagram(memoryview(self._dtls._tx_srtp.protect(packet)))
            except OSError:
                return

    def report(self, ntp: int, timestamp: int, packets: int, octets: int) -> None:
        """For the sender reports and statistics: these two are of the same moment, and so much was sent."""
        sender: Any = self._sender
        sender._RTCRtpSender__ntp_timestamp = ntp
        sender._RTCRtpSender__rtp_timestamp = timestamp
        sender._RTCRtpSender__packet_count = packets
        sender._RTCRtpSender__octet_count = octets

    def _grow(self, size: int) -> None:
        self._memory = ffi.new("char[]", size)
        self.datagrams = memoryview(ffi.buffer(self._memory))


def take_over(sender: RTCRtpSender, own: OwnSender) -> None:
    """Put a sender of our own in the place of aiortc's RTP task; RTCP stays aiortc's. Before the connection is made."""
    handle_rtcp, send = sender._handle_rtcp_packet, sender.send
    parameters: list[RTCRtpSendParameters] = []

    async def sending(given: RTCRtpSendParameters) -> None:
        parameters.append(given)
        await send(given)

    async def run_rtp(codec: RTCRtpCodecParameters) -> None:
        inner: Any = sender
        inner._RTCRtpSender__rtp_started.set()
        try:
            own.connect(RtpPath(sender, codec, parameters[-1]))
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass
        finally:
            own.close()
            inner._RTCRtpSender__rtp_exited.set()

    async def retransmit(sequence_number: int) -> None:
        own.retransmit(sequence_number)

    async def handled(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == _REMB_FMT:
            try:
                bitrate_bps, ssrcs = unpack_remb_fci(packet.fci)
            except ValueError:
                return
            if sender._ssrc in ssrcs:
                own.estimate(bitrate_bps)
            return
        await handle_rtcp(packet)

    _replace(sender, send=sending, _run_rtp=run_rtp, _retransmit=retransmit, _handle_rtcp_packet=handled)


def _replace(sender: RTCRtpSender, **methods: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    for name, method in methods.items():
        setattr(sender, name, method)
