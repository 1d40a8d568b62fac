"""The interfaces of other rooms that this room uses; daemon.py passes the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge.contract.messages import (
        AnswerBody,
        CameraStatus,
        CandidateBody,
        ControlsBody,
        OfferBody,
        QualityBody,
        SessionInfo,
        SnapshotBody,
        StreamBody,
    )
    from edge.core.camera_controls import ControlValues
    from edge.core.once import Row
    from edge.core.ports import SessionListener
    from edge.core.principal import Principal


class SessionCommands(Protocol):
    """The commands of sessions and the stream. Every call raises EdgeError with the contract's code."""

    async def open(self, body: OfferBody, owner: Principal, listener: SessionListener) -> AnswerBody: ...

    async def candidate(self, body: CandidateBody, caller: Principal) -> None: ...

    async def quality(self, body: QualityBody, caller: Principal) -> None: ...

    async def close(self, session_id: str, caller: Principal) -> None: ...

    def listing(self) -> list[SessionInfo]: ...

    def check_owner(self, session_id: str, caller: Principal) -> None: ...

    async def start(self, body: StreamBody, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...


class CameraCommands(Protocol):
    """The commands of the camera. Every call raises EdgeError with the contract's code."""

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues: ...

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes: ...


class CameraStatusSource(Protocol):
    """The camera, for the status."""

    hd_frames: int
    """HD access units since the start."""

    def status(self) -> CameraStatus: ...


class StreamState(Protocol):
    """Whether the operator wants the stream to run, and the reason that the operator gave."""

    running: bool
    reason: str | None


class Viewers(Protocol):
    """The sessions, for the status."""

    @property
    def count(self) -> int: ...

    @property
    def limit(self) -> int: ...

    def listing(self) -> list[SessionInfo]: ...


class Ledger(Protocol):
    """Rows that survive a restart."""

    def open(self) -> list[Row]:
        """Open the ledger; return its rows. Some may have expired."""

    def put(self, row: Row) -> None:
        """Write a row soon; it replaces one with the same key. Never blocks, never raises."""

    def drop(self, key: tuple[str, str, str]) -> None: ...


class EventStore(Protocol):
    """Payloads of events by id that survive a restart, in the order in which they were added."""

    def open(self) -> list[tuple[str, bytes]]:
        """Open the store; return all payloads, the oldest first."""

    def put(self, event_id: str, payload: bytes) -> None:
        """Write one soon. Never blocks, never raises."""

    def drop(self, event_id: str) -> None: ...


class Tuning(Protocol):
    """The settings that a backend may change."""

    @property
    def version(self) -> int | None:
        """The version of the last document, also from before a restart. None: it had none, or there was no document."""

    def desire(self, values: ControlValues, version: int | None, stamp: object) -> None:
        """Apply a document of desired settings. The same document with the same stamp changes nothing."""

    def report(self) -> dict[str, Any]:
        """Return the settings in force and the outcome of the last document."""
