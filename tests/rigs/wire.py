"""A fake transport for an RTP sender: it records the sent datagrams and decrypts them like a receiver."""

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

from edge.streaming.aiortc_rtp import RtpPath

if TYPE_CHECKING:
    from collections.abc import Sequence

PROFILES = {
    b"SRTP_AEAD_AES_128_GCM": Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    b"SRTP_AES128_CM_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}
GCM, CM = PROFILES
VIDEO, RTX, SSRC, RTX_SSRC = 102, 103, 1111, 2222
ADDRESS = ("192.0.2.1", 5000)


def _session(end: int, profile: bytes) -> Session:
    policy = Policy(key=bytes(range(30)), ssrc_type=end, srtp_profile=PROFILES[profile])
    policy.allow_repeat_tx, policy.window_size = True, 1024  # as aiortc sets them
    return Session(policy)


class Wire:
    """`path`: for the sender under test. Acts as a UDP socket with segmentation, or as a TURN relay."""

    def __init__(
        self,
        profile: bytes = GCM,
        extensions: dict[str, int] | None = None,
        *,
        relay: bool = False,
        rtx: bool = True,
    ) -> None:
        self.datagrams: list[bytes] = []
        self.times_s: list[float] = []
        self.calls = 0
        self.refusal: OSError | None = None
        self.waiting_bytes = 0
        self.bound: list[bytes] = []
        ends = [_session(end, profile) for end in (Policy.SSRC_ANY_OUTBOUND, Policy.SSRC_ANY_INBOUND)]
        self._receiving = ends[1]
        self._relay_protocol = SimpleNamespace(
            peer_to_channel={ADDRESS: 0x4001},
            channel_refresh_at={0x4001: math.inf},
            transport=SimpleNamespace(is_closing=lambda: False, get_write_buffer_size=lambda: self.waiting_bytes),
            _send=self._relayed,
            send_data=self._bind,
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
        rtx_codec = RTCRtpCodecParameters("video/rtx", 90_000, payloadType=RTX, parameters={"apt": VIDEO})
        parameters: Any = SimpleNamespace(
            codecs=[codec, rtx_codec] if rtx else [codec],
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
        """Split the data into datagrams of the given size, like Linux with UDP_SEGMENT. The last may be shorter."""
        (data,), [(level, kind, size)] = buffers, ancillary
        assert (level, kind) == (17, 103)
        segment = int.from_bytes(size, "little")
        assert len(data) <= 64 * segment
        self._record([bytes(data[at : at + segment]) for at in range(0, len(data), segment)], address)

    def sendto(self, datagram: memoryview, address: tuple[str, int]) -> None:
        self._record([bytes(datagram)], address)

    def rtp(self) -> list[RtpPacket]:
        """Decrypt the sent packets, without RTCP. Call once: SRTP rejects repeated packets."""
        packets = [self._receiving.unprotect(datagram) for datagram in self.datagrams if not 200 <= datagram[1] < 208]
        return [RtpPacket.parse(packet, HeaderExtensionsMap()) for packet in packets]

    def reports(self) -> list[RtcpSrPacket]:
        packets = [self._receiving.unprotect_rtcp(each) for each in self.datagrams if 200 <= each[1] < 208]
        return [found for packet in packets for found in RtcpPacket.parse(packet) if isinstance(found, RtcpSrPacket)]

    def _record(self, datagrams: list[bytes], address: tuple[str, int]) -> None:
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
        transport._TurnTransport__send_tasks = set()
        return transport

    async def _bind(self, datagram: bytes, _: tuple[str, int]) -> None:
        self.bound.append(datagram)

    def _relayed(self, message: bytes) -> None:
        assert message[:4] == (0x4001).to_bytes(2, "big") + (len(message) - 4).to_bytes(2, "big")
        self._record([message[4:]], ADDRESS)

    def lose_channel(self) -> None:
        self._relay_protocol.peer_to_channel.clear()


def pictures(packets: list[RtpPacket]) -> list[bytes]:
    """The access units in these packets, with start codes, by aiortc's depacketizer."""
    found, parts = [], b""
    for packet in packets:
        parts += H264PayloadDescriptor.parse(packet.payload)[1]
        if packet.marker:
            found.append(parts)
            parts = b""
    assert not parts
    return found
