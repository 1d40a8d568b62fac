"""One session: its phase, its owner, its peer, and the task that sees it through to its end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edge.contract.codes import Code, EndReason
from edge.contract.messages import CANDIDATES_LIMIT, SessionInfo
from edge.core.session import Deadlines, Phase, SessionMachine
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from edge.core.candidate import Candidate
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable
    from edge.sessions.ports import Door, Peer

log = logging.getLogger(__name__)

_SAMPLE_S = 2.0


class Session:
    """A session from its admission to its end. Also what its peer tells its events to."""

    def __init__(
        self,
        session_id: str,
        owner: Principal,
        door: Door,
        deadlines: Deadlines,
        *,
        since: datetime,
        now_s: Callable[[], float],
        on_live: Callable[[Session], None],
    ) -> None:
        self.id = session_id
        self.owner = owner
        self.since = since
        self.peer: Peer | None = None
        self.mid = ""
        self.machine = SessionMachine(deadlines)
        self._door = door
        self._now_s = now_s
        self._on_live = on_live
        self._changed = asyncio.Event()
        self._candidates = 0
        self._held: list[Candidate] = []
        self._answered = False
        self._stalled = self._told_of_camera = False
        self._sample: tuple[float, int] | None = None
        self._bitrate_bps: int | None = None
        self._loss: float | None = None
        self.machine.advance(Phase.ANSWERING, now_s())

    # What the peer tells.

    def connected(self) -> None:
        if self.machine.advance(Phase.LIVE, self._now_s()):
            self._changed.set()
            self._on_live(self)

    def lost(self) -> None:
        self.finish(EndReason.CONNECTION_LOST)

    def local_candidate(self, line: str | None) -> None:
        self._door.candidate(self.id, self.owner, line, self.mid)

    # What the service does with it.

    def tell_camera(self, error: CameraUnavailable | None) -> None:
        """Tell its owner that the picture stands still, or moves again; each once."""
        if self.machine.phase is Phase.LIVE and self._stalled != (error is not None):
            self._stalled = error is not None
            self._told_of_camera = True
            self._door.camera(self.id, self.owner, error)

    def tell_camera_again(self, error: CameraUnavailable | None) -> None:
        """The link was away, and what was told may not have reached its owner."""
        if self._told_of_camera:
            self._door.camera(self.id, self.owner, error if self._stalled else None)

    def tell_closed(self, reason: EndReason) -> None:
        """Tell its owner that it ended."""
        self._door.closed(self.id, self.owner, reason)

    def answered(self) -> None:
        """The answer is about to leave."""
        self._answered = True
        self.machine.advance(Phase.CONNECTING, self._now_s())
        self._changed.set()

    def finish(self, reason: EndReason) -> None:
        """Begin the end; the first reason stays."""
        if self.machine.finish(reason, self._now_s()):
            self._changed.set()

    async def add_candidate(self, candidate: Candidate | None) -> None:
        """A candidate of the viewer's; None is one of a kind that is of no use, but counts.

        Raises: Rejected: `rate_limited`, more than a session may have.
        """
        if self._candidates >= CANDIDATES_LIMIT:
            raise Rejected(Code.RATE_LIMITED, f"a session takes {CANDIDATES_LIMIT} candidates")
        self._candidates += 1
        if candidate is None:
            return
        if self._answered and self.peer is not None:
            await self.peer.add_candidate(candidate)
        else:
            self._held.append(candidate)

    async def take_held(self, peer: Peer) -> None:
        """Hand on the candidates that came before the answer was made."""
        while self._held:
            await peer.add_candidate(self._held.pop(0))

    async def see_through(self) -> None:
        """Wait for its end, by whatever comes first, then close its peer. Every wait has a deadline."""
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
            log.error("the connection did not close within %.0f s", self.machine.deadlines.closing_s)  # noqa: TRY400

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
        """Until something changed, the phase is overdue, or a sample is due."""
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
