"""The rule that admits or rejects an offer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUSY_RETRY_S = 20
_CLOSING_RETRY_S = 3
_CLOSING_FACTOR = 2
"""Sessions that are closing hold memory for some seconds, so their number is limited, too."""


@dataclass(frozen=True, slots=True)
class Place:
    """A session. `viewer`: proved by a token; None: only claimed, so that limits for each viewer mean nothing."""

    session: str
    viewer: str | None
    live: bool
    closing: bool = False


def admit_use(*, running: bool) -> None:
    """Admit a use of the camera. Raises: Rejected: `stopped`."""
    if not running:
        raise Rejected(Code.STOPPED, "the stream was stopped; stream.start starts it", retry_after_s=10)


def admit(viewer: str | None, places: Sequence[Place], *, max_viewers: int, max_per_viewer: int) -> str | None:
    """Admit one more session of a viewer. `places`: the sessions, the oldest first.

    Returns the session that gives way to it, which must end; None: none does. A viewer that has all its places replaces
    its oldest session that is not live. When all places are taken, a viewer that has none replaces the oldest
    connection attempt of one that has others.
    Raises: Rejected: `busy`.
    """
    taken = [place for place in places if not place.closing]
    own = [place for place in taken if viewer is not None and place.viewer == viewer]
    closing = sum(place.closing and viewer is not None and place.viewer == viewer for place in places)
    if len(own) + closing >= _CLOSING_FACTOR * max_per_viewer or len(places) >= _CLOSING_FACTOR * max_viewers:
        raise Rejected(Code.BUSY, "earlier sessions are still closing", retry_after_s=_CLOSING_RETRY_S)
    leaving: Place | None = None
    if len(own) >= max_per_viewer:
        leaving = next((place for place in own if not place.live), None)
        if leaving is None or len(own) > max_per_viewer:
            message = f"this viewer has {len(own)} of {max_per_viewer} sessions"
            raise Rejected(Code.BUSY, message, retry_after_s=_BUSY_RETRY_S)
    elif len(taken) >= max_viewers and viewer is not None and not own:
        held = Counter(place.viewer for place in taken)
        attempts = (place for place in taken if place.viewer is not None and not place.live)
        leaving = next((place for place in attempts if held[place.viewer] > 1), None)
    if len(taken) - (leaving is not None) >= max_viewers:
        raise Rejected(Code.BUSY, f"{len(taken)} of {max_viewers} viewers are connected", retry_after_s=_BUSY_RETRY_S)
    return leaving.session if leaving is not None else None
