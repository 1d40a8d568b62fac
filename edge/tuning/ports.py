"""What remote settings need of other rooms; daemon.py passes the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge.errors import CameraUnavailable


class TunableCamera(Protocol):
    """The camera in a trial of settings."""

    @property
    def error(self) -> CameraUnavailable | None:
        """Why there are no frames; None: there are."""

    async def picture(self, *, sd: bool) -> None:
        """Wait for a frame that was encoded with the current settings. `sd`: wait for an SD frame, too.

        Raises: CameraUnavailable: SD cannot be encoded.
        """


class Stream(Protocol):
    """The desired state of the stream."""

    @property
    def running(self) -> bool: ...

    async def until(self, *, running: bool) -> None: ...
