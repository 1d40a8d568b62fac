"""One session: its phase, its owner, its peer, and the task that runs it to its end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edge.contract.codes import Code, EndReason
from edge.contract.messages import CANDIDATES_LIMIT, SessionInfo
from edge.core.admission import Place
from edge.core.candidate import LOCAL_NAMES_LIMIT, LocalName
from edge.core.session import Deadlines, Phase, SessionMachine
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from edge.core.candidate import Candidate
    from edge.core.ports import SessionListener
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable
    from edge.sessions.ports import Peer

log = logging.getLogger(__name__)

_SAMPLE_S = 2.0


class Session:
    """One session from its admission to its end. It receives its peer's events (`PeerEvents`)."""

    def __init__(
        self,
        session_id: str,
        owner: Principal,
        listener: SessionListener,
        deadlines: Deadlines,
        *,
        since: datetime,
        now_s: Callable[[], float],
        on_live: Callable[[Session], None],
    ) -> None:
        self.id = session_id
        self.owner = owner
        self.since = since
        self.opened_s = now_s()
        self.peer: Peer | None = None
        self.mid = ""
        self.machine = SessionMachine(deadlines)
        self._listener = listener
        self._now_s = now_s
        self._on_live = on_live
        self._changed = asyncio.Event()
        self._candidates = self._names = 0
        self._early_candidates: list[Candidate | LocalName] = []
        self._answered = False
        self._frozen = self._camera_notified = False
        self._sample: tuple[float, int] | None = None
        self._bitrate_bps: int | None = None
        self._loss: float | None = None
        self.machine.advance(Phase.ANSWERING, self.opened_s)

    # Events of the peer.

    def connected(self) -> None:
        if self.machine.advance(Phase.LIVE, self._now_s()):
            self._changed.set()
            self._on_live(self)

    def lost(self) -> None:
        self.finish(EndReason.CONNECTION_LOST)

    def relay_lost(self) -> None:
        self.finish(EndReason.RELAY_LOST)

    def failed(self) -> None:
        self.finish(EndReason.INTERNAL)

    def local_candidate(self, line: str | None) -> None:
        self._listener.candidate(self.id, self.owner, line, self.mid)

    # Calls of the service.

    def notify_camera(self, error: CameraUnavailable | None) -> None:
        """Notify the owner of a live session once when the picture freezes, and once when it moves again (None)."""
        if self.machine.phase is Phase.LIVE and self._frozen != (error is not None):
            self._frozen = error is not None
            self._camera_notified = True
            self._listener.camera(self.id, self.owner, error)

    def repeat_camera(self, error: CameraUnavailable | None) -> None:
        """Send the last notification again: the link was down and may have lost it."""
        if self._camera_notified:
            self._listener.camera(self.id, self.owner, error if self._frozen else None)

    def notify_closed(self, reason: EndReason) -> None:
        """Notify the owner that the session ended."""
        self._listener.closed(self.id, self.owner, reason)

    def answered(self) -> None:
        """Record that the answer is ready to be sent."""
        self._answered = True
        self.machine.advance(Phase.CONNECTING, self._now_s())
        self._changed.set()

    def finish(self, reason: EndReason) -> None:
        """Begin to close. The first reason stays."""
        if self.machine.finish(reason, self._now_s()):
            self._changed.set()

    async def add_candidate(self, candidate: Candidate | LocalName | None) -> None:
        """Add a candidate of the viewer. None: a candidate that cannot be used.

        Only usable ones count, so that relays, which come last, still fit.
        Raises: Rejected: `rate_limited`, the session has as many as it may.
        """
        if candidate is None:
            return
        if isinstance(candidate, LocalName):
            if self._names == LOCAL_NAMES_LIMIT:
                return
            self._names += 1
        elif self._candidates >= CANDIDATES_LIMIT:
            raise Rejected(Code.RATE_LIMITED, f"a session takes {CANDIDATES_LIMIT} candidates")
        else:
            self._candidates += 1
        if self._answered and self.peer is not None:
            await self._pass_on(self.peer, candidate)
        else:
            self._early_candidates.append(candidate)

    async def add_early_candidates(self, peer: Peer) -> None:
        """Pass on the candidates that arrived before the answer was made."""
        while self._early_candidates:
            await self._pass_on(peer, self._early_candidates.pop(0))

    async def _pass_on(self, peer: Peer, candidate: Candidate | LocalName) -> None:
        if isinstance(candidate, LocalName):
            peer.add_local_name(candidate)
        elif not await peer.add_candidate(candidate):
            self._candidates -= 1

    async def run(self) -> None:
        """Wait until the session ends, then close its peer. Every wait has a deadline."""
        try:
            while self.machine.phase is not Phase.CLOSING:
                await self._wait()
                if reason := self.machine.overdue(self._now_s()):
                    self.finish(reason)
        finally:
            await self._close_peer()
            self.machine.advance(Phase.CLOSED, self._now_s())

    async def _close_peer(self) -> None:
        if self.peer is None:
            return
        try:
            async with asyncio.timeout(self.machine.deadlines.closing_s):
                await self.peer.close()
        except TimeoutError:
            log.error("connection did not close after_s=%.0f", self.machine.deadlines.closing_s)

    @property
    def place(self) -> Place:
        phase = self.machine.phase
        return Place(self.id, self.owner.proven, phase is Phase.LIVE, phase in {Phase.CLOSING, Phase.CLOSED})

    def info(self) -> SessionInfo:
        return SessionInfo(
            session=self.id,
            viewer=self.owner.subject,
            state=self.machine.phase.value,
            quality=self.peer.quality.value if self.peer else "hd",
            path=self.peer.path if self.peer else None,
            bitrate_bps=self._bitrate_bps,
            loss=self._loss,
            since=self.since,
        )

    async def _wait(self) -> None:
        """Wait until something changed, the phase is overdue, or a sample is due."""
        deadline_s = self.machine.deadline_s()
        live = self.machine.phase is Phase.LIVE
        try:
            async with asyncio.timeout(_SAMPLE_S if deadline_s is None else max(0.0, deadline_s - self._now_s())):
                await self._changed.wait()
            self._changed.clear()
        except TimeoutError:
            if live and self.peer is not None:
                await self._take_sample(self.peer)

    async def _take_sample(self, peer: Peer) -> None:
        sent, self._loss = await peer.stats()
        now_s = self._now_s()
        if self._sample is not None:
            then_s, sent_then = self._sample
            self._bitrate_bps = round(8 * (sent - sent_then) / max(now_s - then_s, 1e-3))
        self._sample = now_s, sent
