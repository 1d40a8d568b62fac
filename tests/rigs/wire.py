"""A sender's way out without a connection behind it: what leaves is kept, and read as a receiver would."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aioice.turn import TurnTransport
from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import HeaderExtensionsMap, RtcpPacket, RtcpSrPacket, RtpPacket
from pylibsrtp import Policy, Session

from edge.streaming.aiortc_private import RtpPath

if TYPE_CHECKING:
    from collections.abc import Sequence

PROFILES = {
    b"SRTP_AEAD_AES_128_GCM": Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    b"SRTP_AES128_CM_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}
GCM, CM = PROFILES
VIDEO, RTX, SSRC, RTX_SSRC = 102, 103, 1111, 2222
ADDRESS = ("192.0.2.1", 5000)


class Wire:
    """`path` for a sender; a socket that cuts runs as the kernel does, or a relay; the receiver's end of the keys."""

    def __init__(self, profile: bytes = GCM, extensions: dict[str, int] | None = None, *, relay: bool = False) -> None:
        self.datagrams: list[bytes] = []
        self.times_s: list[float] = []
        self.calls = 0
        self.refusal: OSError | None = None
        self.waiting_bytes = 0
        self.bound: list[bytes] = []
        ends = [
            Session(Policy(key=bytes(range(30)), ssrc_type=end, srtp_profile=PROFILES[profile]))
            for end in (Policy.SSRC_ANY_OUTBOUND, Policy.SSRC_ANY_INBOUND)
        ]
        self._receiving = ends[1]
        self._relay_protocol = SimpleNamespace(
            peer_to_channel={ADDRESS: 0x4001},
            channel_refresh_at={0x4001: math.inf},
            transport=SimpleNamespace(is_closing=lambda: False, get_write_buffer_size=lambda: self.waiting_bytes),
            _send=self._relayed,
        )
        pair = SimpleNamespace(remote_addr=ADDRESS, protocol=SimpleNamespace(transport=self._transport(relay=relay)))
        self.nominated = {1: pair}
        dtls = SimpleNamespace(
            _ssl=SimpleNamespace(get_selected_srtp_profile=lambda: profile),
            _tx_srtp=ends[0],
            transport=SimpleNamespace(_connection=SimpleNamespace(_nominated=self.nominated)),
        )
        sender: Any = SimpleNamespace(transport=dtls, _ssrc=SSRC, _rtx_ssrc=RTX_SSRC, _RTCRtpSender__rtt=None)
        self.sender = sender
        codec = RTCRtpCodecParameters("video/H264", 90_000, payloadType=VIDEO)
        rtx = RTCRtpCodecParameters("video/rtx", 90_000, payloadType=RTX, parameters={"apt": VIDEO})
        parameters: Any = SimpleNamespace(
            codecs=[codec, rtx],
            headerExtensions=[SimpleNamespace(uri=uri, id=number) for uri, number in (extensions or {}).items()],
            muxId="0",
            rtcp=SimpleNamespace(cname="camera"),
        )
        self.path = RtpPath(sender, codec, parameters)

    def sendmsg(
        self,
        buffers: Sequence[memoryview],
        ancillary: list[tuple[int, int, bytes]],
        _flags: int,
        address: tuple[str, int],
    ) -> None:
        """As Linux does with UDP_SEGMENT: cut into datagrams of this size, the last may be shorter."""
        (data,), [(level, kind, size)] = buffers, ancillary
        assert (level, kind) == (17, 103)
        segment = int.from_bytes(size, "little")
        assert len(data) <= 64 * segment
        self._take([bytes(data[at : at + segment]) for at in range(0, len(data), segment)], address)

    def sendto(self, datagram: memoryview, address: tuple[str, int]) -> None:
        self._take([bytes(datagram)], address)

    def rtp(self) -> list[RtpPacket]:
        """What left, but for reports, unprotected. Once: a receiver takes no packet twice."""
        packets = [self._receiving.unprotect(datagram) for datagram in self.datagrams if not 200 <= datagram[1] < 208]
        return [RtpPacket.parse(packet, HeaderExtensionsMap()) for packet in packets]

    def reports(self) -> list[RtcpSrPacket]:
        packets = [self._receiving.unprotect_rtcp(each) for each in self.datagrams if 200 <= each[1] < 208]
        return [found for packet in packets for found in RtcpPacket.parse(packet) if isinstance(found, RtcpSrPacket)]

    def _take(self, datagrams: list[bytes], address: tuple[str, int]) -> None:
        assert address == ADDRESS
        if self.refusal is not None:
            raise self.refusal
        self.calls += 1
        self.datagrams += datagrams
        self.times_s += [time.monotonic()] * len(datagrams)

    def _transport(self, *, relay: bool) -> Any:
        if not relay:
            return SimpleNamespace(get_extra_info=lambda _: SimpleNamespace(_sock=self))
        transport: Any = object.__new__(TurnTransport)
        transport._TurnTransport__inner_protocol = self._relay_protocol
        transport.sendto = lambda datagram, _: self.bound.append(datagram)
        return transport

    def _relayed(self, message: bytes) -> None:
        assert message[:4] == (0x4001).to_bytes(2, "big") + (len(message) - 4).to_bytes(2, "big")
        self._take([message[4:]], ADDRESS)

    def lose_channel(self) -> None:
        self._relay_protocol.peer_to_channel.clear()


def pictures(packets: list[RtpPacket]) -> list[bytes]:
    """The access units in these packets, by aiortc's depacketizer, each with its start codes."""
    found, parts = [], b""
    for packet in packets:
        parts += H264PayloadDescriptor.parse(packet.payload)[1]
        if packet.marker:
            found.append(parts)
            parts = b""
    assert not parts
    return found
