"""Interfaces that two rooms share: one room implements each of them and another one calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge.contract.codes import EndReason
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable


class PeerEvents(Protocol):
    """Receives what happens to the connection to one viewer, in the event loop. Never blocks, never raises."""

    def connected(self) -> None: ...

    def lost(self) -> None:
        """The viewer closed the connection, or its network failed."""

    def relay_lost(self) -> None:
        """The TURN server ended the device's relay, or does not refresh it."""

    def failed(self) -> None:
        """The device can no longer send to the viewer, although the connection is up."""

    def local_candidate(self, line: str | None) -> None:
        """The device found one of its own ICE candidates after the answer. None: there will be no more."""


class SessionListener(Protocol):
    """Receives what happens to a session, on behalf of the client that opened it. Never blocks, never raises."""

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None:
        """The device found one of its own ICE candidates. `line` None: there will be no more."""

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None: ...

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None:
        """The picture froze because of `error`. None: it moves again."""


class StateStore(Protocol):
    """A small JSON object that survives a restart. A write replaces it as a whole."""

    def read(self) -> dict[str, Any] | None:
        """Return None if nothing is stored, or nothing readable."""

    def set_aside(self, why: object) -> None:
        """Move the stored object out of the way: the caller found that it is not what was written. Logs why."""

    async def write(self, fields: dict[str, Any]) -> bool:
        """Return once the object is on disk: True. False: the disk failed, which is logged."""
