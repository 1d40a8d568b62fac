"""One session's bounded queue of access units."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Lane(Generic[_T]):
    """Holds at most `limit` access units and starts, and starts again, only at a keyframe.

    Full: everything queued goes, since a viewer that is this late is served best by the next keyframe; nobody
    else notices. More than half full when a keyframe comes: it goes on from that. `dropped` counts what was not taken,
    from the first keyframe on.
    """

    def __init__(self, limit: int = 8) -> None:
        self.dropped = 0
        self._limit = limit
        self._units: deque[_T] = deque()
        self._waits_for_keyframe = True
        self._started = False

    def push(self, unit: _T, *, keyframe: bool) -> bool:
        """Queue one access unit. False: the lane waits for a keyframe, and this was none."""
        if len(self._units) >= self._limit:
            self.dropped += len(self._units)
            self._units.clear()
            self._waits_for_keyframe = True
        if keyframe:
            if len(self._units) > self._limit // 2:
                self.dropped += len(self._units)
                self._units.clear()
            self._started = True
            self._waits_for_keyframe = False
        elif self._waits_for_keyframe:
            self.dropped += self._started
            return False
        self._units.append(unit)
        return True

    def cut(self) -> None:
        """What was taken last did not reach the viewer whole: nothing more before a keyframe."""
        self.dropped += len(self._units)
        self._units.clear()
        self._waits_for_keyframe = True

    def take(self) -> _T | None:
        """The oldest access unit, None where the lane is empty."""
        return self._units.popleft() if self._units else None

    def __len__(self) -> int:
        return len(self._units)
