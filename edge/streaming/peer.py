"""Our end of one connection to a viewer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from aioice.stun import TransactionError
from aiortc import InvalidStateError, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from edge.contract.codes import Code
from edge.errors import CameraUnavailable, Rejected
from edge.streaming.aiortc_private import (
    IceAgent,
    LocalCandidate,
    missing_for_own_sender,
    offer_extensions,
    on_keyframe_request,
    take_over,
)
from edge.streaming.ice_servers import read_ice_servers
from edge.streaming.packets import Packetizer
from edge.streaming.rtp_sender import RtpSender
from edge.streaming.track_sender import TrackSender

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Sequence

    from edge.contract.messages import IceServer
    from edge.core.access_unit import Quality
    from edge.core.candidate import Candidate
    from edge.core.offer import H264Choice, Offer
    from edge.streaming.hub import Hub
    from edge.streaming.ice_servers import IceServers
    from edge.streaming.settings import IceSettings, RtpSettings

log = logging.getLogger(__name__)


class PeerEvents(Protocol):
    """What a peer tells, in the event loop. Never blocks, never raises."""

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


_SWITCH_TIMEOUT_S = 5.0
OVERHEAD_BYTES = 60
"""Of a packet at most: header 12, extensions 28, RTX's number 2, the longest tag 16."""
_RELAY_TRY_S = 3.0
_REFLEXIVE_TRY_S = 3.0


class Peer:
    """One RTCPeerConnection that sends the hub's pictures, from an offer to `close`. Event loop only.

    `events` is told when it is connected, when it is lost, and each candidate of ours that is found after the answer,
    then once None; nothing after `close` began.
    """

    def __init__(
        self,
        hub: Hub,
        events: PeerEvents,
        servers: IceServers,
        quality: Quality,
        sender: RtpSender | TrackSender,
        *,
        gather_timeout_s: float,
    ) -> None:
        self._hub = hub
        self._events = events
        self._servers = servers
        self._gather_timeout_s = gather_timeout_s
        self._quality = quality
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        # An empty list: without one aiortc asks a public STUN server.
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._sender = sender
        track = sender if isinstance(sender, TrackSender) else "video"
        self._rtp = self._pc.addTransceiver(track, direction="sendonly").sender
        if isinstance(sender, RtpSender):
            sender.failed = self._failed
            take_over(self._rtp, sender)
        on_keyframe_request(self._rtp, lambda: hub.wish_keyframe(sender))
        self._agent = IceAgent(self._pc)
        self._pc.on("connectionstatechange", self._state_changed)

    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        """The answer to an offer.

        `trickle`: at once, with host candidates; what STUN and TURN give follows as events.
        Else: with all candidates that are found within the settings' deadline.
        Raises: Rejected: `bad_offer`, the engine does not take it.
        """
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(offer.for_engine(choice), "offer"))
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except (ValueError, AssertionError, InvalidStateError) as exc:  # what it cannot parse, or closed meanwhile
            raise Rejected(Code.BAD_OFFER, "the offer cannot be answered") from exc
        # The agent changes when a bundle is set up, so it is looked up again.
        self._agent = IceAgent(self._pc)
        for candidate in offer.candidates:
            await self._agent.add_remote(candidate)
        extra: list[str] = []
        if trickle:
            self._spawn(self._trickle(), "trickle")
        else:
            try:
                async with asyncio.timeout(self._gather_timeout_s):
                    await self._gather(extra.append)
            except TimeoutError:
                log.info("STUN or TURN did not answer within %.1f s: answered without", self._gather_timeout_s)
        answer = offer.finish_answer(self._pc.localDescription.sdp, choice, complete=not trickle)
        return _with_candidates(answer, offer.mid, extra)

    async def add_candidate(self, candidate: Candidate) -> None:
        """A candidate of the browser's, after `answer`."""
        if not self._closing:
            await self._agent.add_remote(candidate)

    @property
    def quality(self) -> Quality:
        """What the viewer gets, or will once it is connected."""
        return self._hub.quality_of(self._sender) or self._quality

    async def switch(self, quality: Quality) -> None:
        """Send the other quality, from its next keyframe on; returns when it is sent.

        Raises: CameraUnavailable: it cannot be had, or no keyframe came in time; all stays as it was. Rejected:
        `rate_limited`, a later change replaced this one.
        """
        self._quality = quality
        if self._hub.quality_of(self._sender) is None:
            return
        try:
            async with asyncio.timeout(_SWITCH_TIMEOUT_S):
                await self._hub.switch(self._sender, quality)
        except TimeoutError:
            raise CameraUnavailable(f"no picture in {quality} came in time") from None

    @property
    def path(self) -> str | None:
        """The chosen pair as `local/remote` candidate types."""
        return self._agent.path

    async def stats(self) -> tuple[int, float | None]:
        """Bytes sent so far, and the loss that the viewer last reported (0..1; None before its first report)."""
        sent, loss = 0, None
        for entry in (await self._rtp.getStats()).values():
            if entry.type == "outbound-rtp":
                sent = entry.bytesSent
            elif entry.type == "remote-inbound-rtp":
                loss = entry.fractionLost / 256
        return sent, loss

    async def close(self) -> None:
        """End the connection; the viewer sees it at once. Idempotent. Bound it with a deadline."""
        self._closing = True
        self._hub.leave(self._sender)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sender.close()
        await self._pc.close()

    def _failed(self) -> None:
        self._hub.leave(self._sender)
        if not self._closing:
            self._events.lost()

    def _state_changed(self) -> None:
        if self._closing:
            return
        state = self._pc.connectionState
        if state == "connected":
            self._hub.join(self._sender, self._quality)
            self._events.connected()
        elif state in ("failed", "closed"):
            self._hub.leave(self._sender)
            self._events.lost()

    async def _trickle(self) -> None:
        await self._gather(self._events.local_candidate)
        self._events.local_candidate(None)

    async def _gather(self, found: Callable[[str], None]) -> None:
        await asyncio.gather(self._gather_reflexive(found), self._gather_relayed(found))

    async def _gather_reflexive(self, found: Callable[[str], None]) -> None:
        for server in self._servers.stun:
            if await self._try(self._agent.reflexive(server), _REFLEXIVE_TRY_S, f"STUN {server.host}", found):
                return

    async def _gather_relayed(self, found: Callable[[str], None]) -> None:
        for server in self._servers.turn:
            name = f"TURN {server.host} over {'tls' if server.tls else server.transport}"
            if await self._try(self._agent.relayed(server), _RELAY_TRY_S, name, found):
                return

    async def _try(
        self,
        asking: Coroutine[None, None, list[LocalCandidate]],
        timeout_s: float,
        name: str,
        found: Callable[[str], None],
    ) -> bool:
        """Whether this server settled the matter: it gave a candidate, or none is needed any more."""
        if self._agent.settled:
            asking.close()
            return True
        try:
            async with asyncio.timeout(timeout_s):
                candidates = await asking
        except (OSError, TransactionError) as exc:
            log.warning("%s gave no candidate: %s", name, str(exc) or type(exc).__name__)
            return False
        except Exception:
            # What a server may answer is beyond us, and a viewer can do without it.
            log.exception("%s gave no candidate", name)
            return False
        for candidate in candidates:
            found(candidate.line)
        return bool(candidates)

    def _spawn(self, coro: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _with_candidates(answer: str, mid: str, candidates: list[str]) -> str:
    """The answer with more candidates in its section `mid`, before the end mark where there is one."""
    if not candidates:
        return answer
    lines = answer.splitlines()
    start = lines.index(f"a=mid:{mid}")
    last = max((i for i, line in enumerate(lines) if i > start and line.startswith("a=candidate:")), default=start)
    lines[last + 1 : last + 1] = [f"a={line}" for line in candidates]
    return "".join(f"{line}\r\n" for line in lines)


class PeerFactory:
    """Makes the peers of the hub."""

    def __init__(
        self, hub: Hub, settings: IceSettings, rtp: RtpSettings, counters: Counter[str], *, frame_s: float
    ) -> None:
        self._hub = hub
        self._frame_s = frame_s
        self._settings = settings
        self._rtp = rtp
        self._counters = counters
        self._packetizer = Packetizer(rtp.packet_bytes - OVERHEAD_BYTES, counters)
        self.stock_because = missing_for_own_sender()
        """Why aiortc's own sender is taken; None: ours is."""
        if self.stock_because is None:
            offer_extensions()

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> Peer:
        """Raises: Rejected: a server is malformed, or not on the settings' allow-list."""
        servers = read_ice_servers(ice_servers, self._settings.allowed_hosts)
        return Peer(
            self._hub, events, servers, quality, self._sender(), gather_timeout_s=self._settings.gather_timeout_s
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
