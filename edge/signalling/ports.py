"""What this room needs of other rooms; daemon.py hands the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge.contract.codes import EndReason
    from edge.contract.messages import (
        AnswerBody,
        CandidateBody,
        ControlsBody,
        OfferBody,
        QualityBody,
        SessionInfo,
        SnapshotBody,
        StreamBody,
    )
    from edge.core.camera_controls import Values
    from edge.core.once import Row
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable


class ReplyDoor(Protocol):
    """The way back to the party that opened a session."""

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None: ...

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None: ...

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None: ...


class Sessions(Protocol):
    """The session use case. Every call raises EdgeError with the contract's code."""

    async def open(self, body: OfferBody, owner: Principal, door: ReplyDoor) -> AnswerBody: ...

    async def candidate(self, body: CandidateBody, caller: Principal) -> None: ...

    async def quality(self, body: QualityBody, caller: Principal) -> None: ...

    async def close(self, session_id: str, caller: Principal) -> None: ...

    def listing(self) -> list[SessionInfo]: ...

    async def start(self, body: StreamBody, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...


class CameraUse(Protocol):
    """The camera for a moment. Every call raises EdgeError with the contract's code."""

    async def set(self, body: ControlsBody, caller: Principal) -> Values: ...

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes: ...


class Ledger(Protocol):
    """Rows that survive a restart."""

    def open(self) -> list[Row]:
        """Those that still count."""

    def put(self, row: Row) -> None:
        """Write it down soon, in place of one with the same key. Never blocks, never raises."""

    def drop(self, key: tuple[str, str, str]) -> None: ...


class EventStore(Protocol):
    """Payloads of events by their ids that survive a restart, in the order in which they were put."""

    def open(self) -> list[tuple[str, bytes]]:
        """All of them, the oldest first."""

    def put(self, event_id: str, payload: bytes) -> None:
        """Write one down soon. Never blocks, never raises."""

    def drop(self, event_id: str) -> None: ...


class Tuning(Protocol):
    """The settings that may be changed from afar."""

    @property
    def version(self) -> int | None:
        """Of the last desired document that was looked at, over restarts; None: it had none, or there was none."""

    def desire(self, values: Values, version: int | None, stamp: object) -> None:
        """A desired document; the same again, with the same stamp, changes nothing."""

    def report(self) -> dict[str, Any]:
        """The settings in force, and what became of those that were desired last."""
