"""What this room needs of other rooms; daemon.py hands the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.contract.codes import EndReason
    from edge.contract.messages import IceServer
    from edge.core.access_unit import StreamFormat
    from edge.core.candidate import Candidate
    from edge.core.offer import H264Choice, Offer
    from edge.core.principal import Principal


class Camera(Protocol):
    """The camera, as far as sessions decide over it."""

    def want(self, wanted: bool) -> None: ...

    async def opened(self) -> StreamFormat:
        """Raises: CameraUnavailable: with the cause in words."""

    async def closed(self) -> None:
        """Wait until the camera is released; has a deadline of its own."""


class Peer(Protocol):
    """One connection to a viewer."""

    @property
    def path(self) -> str | None:
        """The chosen pair of candidate types."""

    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        """Raises: Rejected: the offer cannot be answered; `close` is still to be called."""

    async def add_candidate(self, candidate: Candidate) -> None: ...

    async def stats(self) -> tuple[int, float | None]:
        """Bytes sent so far, and the loss last reported."""

    async def close(self) -> None: ...


class PeerEvents(Protocol):
    """What a peer tells, in the event loop. Never blocks, never raises."""

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def local_candidate(self, line: str | None) -> None:
        """A candidate of ours that was found after the answer; None: that was the last."""


class OpenPeer(Protocol):
    """Makes peers."""

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer]) -> Peer:
        """Raises: Rejected: a server is malformed or not allowed."""


class Door(Protocol):
    """The way back to the party that opened a session. Never blocks, never raises."""

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None: ...

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None: ...
