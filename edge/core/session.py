"""The life of one session as a table: which phase may follow which, and by when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge.contract.codes import EndReason


class Phase(StrEnum):
    """A session's phase. ANSWERING, CONNECTING and CLOSING have a deadline each."""

    NEW = "new"
    ANSWERING = "answering"
    CONNECTING = "connecting"
    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"


_NEXT = {
    Phase.NEW: {Phase.ANSWERING, Phase.CLOSING},
    Phase.ANSWERING: {Phase.CONNECTING, Phase.CLOSING},
    Phase.CONNECTING: {Phase.LIVE, Phase.CLOSING},
    Phase.LIVE: {Phase.CLOSING},
    Phase.CLOSING: {Phase.CLOSED},
    Phase.CLOSED: set(),
}

_OVERDUE = {Phase.ANSWERING: EndReason.ANSWER_TIMEOUT, Phase.CONNECTING: EndReason.CONNECT_TIMEOUT}


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The longest duration of each phase that has a deadline."""

    answering_s: float = 8.0
    connecting_s: float = 15.0
    closing_s: float = 3.0


@dataclass(slots=True)
class SessionMachine:
    """One session's phase, the time when it began, and why the session ended."""

    deadlines: Deadlines
    phase: Phase = Phase.NEW
    entered_s: float = 0.0
    end: EndReason | None = None

    def advance(self, phase: Phase, now_s: float) -> bool:
        """Enter a phase. False: the phase cannot follow (a late event), and nothing changed."""
        if phase not in _NEXT[self.phase]:
            return False
        self.phase = phase
        self.entered_s = now_s
        return True

    def finish(self, reason: EndReason, now_s: float) -> bool:
        """Begin to close. False: the session is closing already and keeps its first reason."""
        if not self.advance(Phase.CLOSING, now_s):
            return False
        self.end = reason
        return True

    def deadline_s(self) -> float | None:
        """When the present phase is overdue. None: this phase has no deadline."""
        allowed_s = {
            Phase.ANSWERING: self.deadlines.answering_s,
            Phase.CONNECTING: self.deadlines.connecting_s,
            Phase.CLOSING: self.deadlines.closing_s,
        }.get(self.phase)
        return None if allowed_s is None else self.entered_s + allowed_s

    def overdue(self, now_s: float) -> EndReason | None:
        """The reason to end the session now. None: it is in time."""
        deadline_s = self.deadline_s()
        return _OVERDUE.get(self.phase) if deadline_s is not None and now_s >= deadline_s else None
