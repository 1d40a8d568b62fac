"""What this room needs of other rooms; daemon.py hands the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge.contract.codes import EndReason
    from edge.contract.messages import IceServer
    from edge.core.access_unit import Quality, StreamFormat
    from edge.core.camera_controls import Offered, Values
    from edge.core.candidate import Candidate
    from edge.core.offer import H264Choice, Offer
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable


class Camera(Protocol):
    """The camera, as far as sessions decide over it."""

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """What it encodes; nothing while it is not open."""

    def want(self, wanted: bool) -> None: ...

    async def opened(self) -> StreamFormat:
        """Raises: CameraUnavailable: with the cause in words."""

    async def closed(self) -> None:
        """Wait until the camera is released; has a deadline of its own."""

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        """What the settings allow, in bits a second."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None: ...

    @property
    def offered(self) -> Mapping[str, Offered]:
        """The controls of the camera while it is open."""

    @property
    def values(self) -> Values:
        """The controls that are set."""

    async def set_controls(self, values: Values) -> Values:
        """Raises: Rejected: a value that it does not take. CameraUnavailable: it is not open, or fails."""

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """Raises: CameraUnavailable: it is not open, or gives none in time."""


class Kept(Protocol):
    """A small file that survives a restart, replaced as a whole."""

    def read(self) -> dict[str, Any] | None:
        """None: there is nothing yet, or nothing readable."""

    async def write(self, fields: dict[str, Any]) -> object:
        """Returns when it is on disk; a disk that takes nothing is told in the log."""


class Peer(Protocol):
    """One connection to a viewer."""

    @property
    def path(self) -> str | None:
        """The chosen pair of candidate types."""

    @property
    def quality(self) -> Quality: ...

    async def switch(self, quality: Quality) -> None:
        """Raises: CameraUnavailable: it cannot be had now; all stays as it was."""

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

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> Peer:
        """Raises: Rejected: a server is malformed or not allowed."""


class Door(Protocol):
    """The way back to the party that opened a session. Never blocks, never raises."""

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None: ...

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None: ...

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None:
        """The picture stands still, and why; None: it moves again."""
