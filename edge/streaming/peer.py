"""Our end of the connection to one viewer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiortc import InvalidStateError, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from edge.contract.codes import Code
from edge.core.log_limit import LogLimit
from edge.errors import CameraUnavailable, Rejected, Unavailable
from edge.streaming.aiortc_ice import IceAgent
from edge.streaming.aiortc_rtp import missing_for_own_sender, on_keyframe_request, register_extensions, take_over
from edge.streaming.background import in_background
from edge.streaming.gathering import Gathering
from edge.streaming.ice_servers import read_ice_servers
from edge.streaming.interfaces import open_sockets
from edge.streaming.local_names import resolve_local
from edge.streaming.packets import Packetizer
from edge.streaming.rtp_sender import RtpSender
from edge.streaming.track_sender import TrackSender

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from edge.contract.messages import IceServer, IceServerLeftOut
    from edge.core.access_unit import Quality
    from edge.core.candidate import Candidate, LocalName
    from edge.core.offer import H264Choice, Offer
    from edge.core.ports import PeerEvents
    from edge.streaming.hub import Hub
    from edge.streaming.ice_servers import IceServers
    from edge.streaming.settings import IceSettings, RtpSettings

log = logging.getLogger(__name__)

_SWITCH_TIMEOUT_S = 5.0
OVERHEAD_BYTES = 60
"""The most bytes of a packet beside its payload: header 12, extensions 28, RTX's sequence number 2, SRTP tag 16."""
_QUERY_TIMEOUT_S = 5.0
"""For STUN and TURN servers, where the answer does not wait for them."""
_CLOSE_TIMEOUT_S = 2.0
_LOG_FAILURES_S = 60.0


class Peer:
    """One RTCPeerConnection that sends the hub's access units, from the offer to `close`. Event loop only.

    `events`: called when the connection is up, lost or failed, and for each local candidate that is found after the
    answer, with None at the end. Never called after `close`.
    """

    def __init__(
        self,
        hub: Hub,
        events: PeerEvents,
        servers: IceServers,
        quality: Quality,
        sender: RtpSender | TrackSender,
        *,
        counters: Counter[str],
        ice: IceSettings,
        failures: LogLimit,
    ) -> None:
        self._hub = hub
        self._failures = failures
        self._counters = counters
        self._events = events
        self._servers = servers
        self._ice = ice
        self._quality = quality
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        # An empty list: by default, aiortc queries a public STUN server.
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._sender = sender
        track = sender if isinstance(sender, TrackSender) else "video"
        self._rtp = self._pc.addTransceiver(track, direction="sendonly").sender
        sender.ended = self._ended
        if isinstance(sender, RtpSender):
            take_over(self._rtp, sender)
        on_keyframe_request(self._rtp, lambda: hub.request_keyframe(sender))
        self._agent = IceAgent(self._pc, counters)
        self._pc.on("connectionstatechange", self._state_changed)

    async def accept(self, offer: Offer, choice: H264Choice) -> None:
        """Pass an offer with its candidates to the engine and open the sockets. Returns soon: it queries no server.

        Raises: Rejected: `bad_offer`, the engine rejects it. Unavailable: no socket can be opened.
        """
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(offer.for_engine(choice), "offer"))
            # aiortc replaces the agent when it sets up a bundle.
            self._agent = IceAgent(self._pc, self._counters)
            await self._open_sockets()
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except (ValueError, AssertionError, InvalidStateError) as exc:  # cannot be parsed, or closed meanwhile
            raise Rejected(Code.BAD_OFFER, "the offer cannot be answered") from exc
        except OSError as exc:  # no file descriptor is left
            raise Unavailable(f"a connection cannot be opened: {exc.strerror}") from exc
        for candidate in offer.candidates:
            await self.add_candidate(candidate)
        for name in offer.names:
            self.add_local_name(name)

    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        """Gather candidates and return the answer to the offer that `accept` took.

        `trickle`: answer at once with host candidates; those of STUN and TURN servers follow as events. Otherwise, the
        answer contains all candidates that are found within `gather_timeout_s`, and a relay found within
        `relay_timeout_s`.
        """
        extra: list[str] = []
        if trickle:
            self._spawn(self._trickle(), "trickle")
        else:
            await self._gather(extra.append, self._ice.gather_timeout_s, self._ice.relay_timeout_s)
        return offer.finish_answer(self._pc.localDescription.sdp, choice, complete=not trickle, candidates=extra)

    async def add_candidate(self, candidate: Candidate) -> bool:
        """Add a candidate of the viewer's, after `accept`. Returns whether its address may be reachable."""
        usable = self._may_reach(candidate.address)
        if usable and not self._closing:
            await self._agent.add_remote(candidate)
        return usable

    def add_local_name(self, name: LocalName) -> None:
        """Add a candidate of the viewer's, after `accept`, once its name is resolved. Checks of others do not wait."""
        if not self._closing:
            self._spawn(self._resolve(name), "resolve")

    @property
    def quality(self) -> Quality:
        """The quality that the viewer gets, now or once it is connected."""
        return self._hub.quality_of(self._sender) or self._quality

    async def switch(self, quality: Quality) -> None:
        """Change to the other quality at its next keyframe. Returns when that was sent.

        Raises: CameraUnavailable: the quality is not available, or no keyframe arrived in time; nothing changes.
        Rejected: `rate_limited`, a later change replaced this one.
        """
        self._quality = quality
        if self._hub.quality_of(self._sender) is None:
            return
        try:
            async with asyncio.timeout(_SWITCH_TIMEOUT_S):
                await self._hub.switch(self._sender, quality)
        except TimeoutError:
            raise CameraUnavailable(f"no picture in {quality} arrived in time") from None

    @property
    def ice_servers_left_out(self) -> Sequence[IceServerLeftOut]:
        """The URLs of STUN and TURN servers that are not used."""
        return self._servers.left_out

    @property
    def path(self) -> str | None:
        """The types of the chosen candidate pair as `local/remote`."""
        return self._agent.path

    async def stats(self) -> tuple[int, float | None]:
        """Return the bytes sent so far, and the loss that the viewer last reported (0..1; None: no report yet)."""
        sent, loss = 0, None
        for entry in (await self._rtp.getStats()).values():
            if entry.type == "outbound-rtp":
                sent = entry.bytesSent
            elif entry.type == "remote-inbound-rtp":
                loss = entry.fractionLost / 256
        return sent, loss

    async def close(self) -> None:
        """Close the connection; the viewer sees it at once. Idempotent.

        Returns within seconds; what takes longer (a TURN server that does not answer) is finished in the background.
        """
        self._closing = True
        self._hub.leave(self._sender)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sender.close()
        closing = in_background(self._pc.close(), "close")
        await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT_S)
        if closing.done():
            closing.result()

    def _ended(self) -> None:
        """The sender ended: because the connection did, or by a fault of this device."""
        self._hub.leave(self._sender)
        if self._closing:
            return
        if self._rtp.transport.state in ("closed", "failed"):
            self._lost()
        else:
            log.error("sending ended although the connection is up")
            self._events.failed()

    def _state_changed(self) -> None:
        if self._closing:
            return
        state = self._pc.connectionState
        if state == "connected":
            self._hub.join(self._sender, self._quality)
            self._events.connected()
        elif state in ("failed", "closed"):
            self._hub.leave(self._sender)
            self._lost()

    def _lost(self) -> None:
        if self._agent.relay_lost:
            self._events.relay_lost()
        else:
            self._events.lost()

    async def _trickle(self) -> None:
        await self._gather(self._events.local_candidate, _QUERY_TIMEOUT_S, _QUERY_TIMEOUT_S)
        self._events.local_candidate(None)

    async def _gather(self, found: Callable[[str], None], stun_timeout_s: float, turn_timeout_s: float) -> None:
        gathering = Gathering(self._agent, self._servers, found, self._may_reach, self._failures)
        await gathering.run(stun_timeout_s=stun_timeout_s, turn_timeout_s=turn_timeout_s)

    def _may_reach(self, address: IPv4Address | IPv6Address) -> bool:
        if address.is_loopback:
            return self._ice.allow_loopback
        return not address.is_link_local or self._agent.has_link_local(address.version)

    async def _resolve(self, name: LocalName) -> None:
        address = await resolve_local(name.name)
        candidate = None if address is None else name.at(address)
        if candidate is not None and not self._agent.settled:
            await self.add_candidate(candidate)

    async def _open_sockets(self) -> None:
        await self._agent.use_sockets(open_sockets(self._ice))
        if not self._agent.host_sockets and (count := self._failures.due(_now_s(), "sockets")):
            log.warning("no address or UDP port is free for a viewer (ice.interfaces, ice.udp_port_*) count=%d", count)

    def _spawn(self, coro: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


class PeerFactory:
    """Makes peers that are fed by the hub."""

    def __init__(
        self, hub: Hub, settings: IceSettings, rtp: RtpSettings, counters: Counter[str], *, frame_s: float
    ) -> None:
        self._hub = hub
        self._frame_s = frame_s
        self._settings = settings
        self._rtp = rtp
        self._counters = counters
        self._failures = LogLimit(_LOG_FAILURES_S)
        self._packetizer = Packetizer(rtp.packet_bytes - OVERHEAD_BYTES, counters)
        self.stock_because = missing_for_own_sender()
        """Why aiortc's own sender is used; None: ours is."""
        if self.stock_because is None:
            register_extensions()

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> Peer:
        """Raises: Rejected: servers are named, and none can be used."""
        servers = read_ice_servers(ice_servers, self._settings.allowed_hosts, self._settings.allowed_ports)
        for one in servers.left_out:
            # By reason: a client could name any number of hosts. AWS's lists always contain an unsupported URL.
            if one.reason != "unsupported" and (count := self._failures.due(_now_s(), one.reason)):
                log.warning("ICE server left out server=%r reason=%s count=%d", one.server, one.reason, count)
        return Peer(
            self._hub,
            events,
            servers,
            quality,
            self._sender(),
            counters=self._counters,
            ice=self._settings,
            failures=self._failures,
        )

    def _sender(self) -> RtpSender | TrackSender:
        if self.stock_because is not None:
            return TrackSender()
        return RtpSender(
            self._packetizer,
            self._counters,
            frame_s=self._frame_s,
            playout_delay_ms=(0, self._rtp.playout_delay_ms),
        )
