"""What this room needs of other rooms; daemon.py hands the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge.errors import CameraUnavailable


class Camera(Protocol):
    """The camera, as far as a trial looks at it."""

    @property
    def error(self) -> CameraUnavailable | None:
        """Why there is no picture."""

    async def picture(self, *, sd: bool) -> None:
        """Wait for one that was made with the settings in force; `sd`: for one of SD, too.

        Raises: CameraUnavailable: SD cannot be encoded.
        """


class Stream(Protocol):
    """The operator's wish."""

    @property
    def running(self) -> bool: ...

    async def until(self, *, running: bool) -> None: ...


class Kept(Protocol):
    """A small file that survives a restart, replaced as a whole."""

    async def write(self, fields: dict[str, Any]) -> bool:
        """Whether it is on disk; one that takes nothing is told in the log."""
