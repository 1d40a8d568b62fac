"""What this room needs of other rooms; daemon.py hands the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge.contract.codes import EndReason
    from edge.contract.messages import AnswerBody, CandidateBody, OfferBody, SessionInfo
    from edge.core.principal import Principal


class ReplyDoor(Protocol):
    """The way back to the party that opened a session."""

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None: ...

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None: ...


class Sessions(Protocol):
    """The session use case. Every call raises EdgeError with the contract's code."""

    async def open(self, body: OfferBody, owner: Principal, door: ReplyDoor) -> AnswerBody: ...

    async def candidate(self, body: CandidateBody, caller: Principal) -> None: ...

    async def close(self, session_id: str, caller: Principal) -> None: ...

    def listing(self, caller: Principal) -> list[SessionInfo]: ...

    async def start(self, reason: str | None, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...
