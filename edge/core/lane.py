"""One session's bounded queue of access units."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Lane(Generic[_T]):
    """Holds at most `limit` access units, and begins only at a keyframe.

    A full lane drops everything and waits for the next keyframe; other lanes are not affected. If a keyframe arrives
    while the lane is more than half full, the lane continues from that keyframe. `dropped` counts the access units that
    were not taken, beginning with the first keyframe.
    """

    def __init__(self, limit: int = 8) -> None:
        self.dropped = 0
        self._limit = limit
        self._units: deque[_T] = deque()
        self._waits_for_keyframe = True
        self._started = False

    def push(self, unit: _T, *, keyframe: bool) -> bool:
        """Queue one access unit. False: it was dropped, since the lane waits for a keyframe."""
        if len(self._units) >= self._limit:
            self.reset()
        if keyframe:
            if len(self._units) > self._limit // 2:
                self.reset()
            self._started = True
            self._waits_for_keyframe = False
        elif self._waits_for_keyframe:
            self.dropped += self._started
            return False
        self._units.append(unit)
        return True

    def reset(self) -> None:
        """Drop everything and wait for a keyframe; also when a unit that was taken could not be sent whole."""
        self.dropped += len(self._units)
        self._units.clear()
        self._waits_for_keyframe = True

    def take(self) -> _T | None:
        """Remove and return the oldest access unit; None: the lane is empty."""
        return self._units.popleft() if self._units else None

    def __len__(self) -> int:
        return len(self._units)
