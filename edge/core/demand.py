"""When the camera has to be open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CameraDemand:
    """Open while somebody watches and for `idle_stop_s` after, so that a page refresh does not bounce the camera."""

    idle_stop_s: float
    _unwatched_since_s: float | None = None
    _sessions: int = 0
    _uses: int = 0

    def sessions(self, count: int, now_s: float) -> None:
        """How many sessions there are now."""
        if self._sessions > 0 and count == 0:
            self._unwatched_since_s = now_s
        self._sessions = count

    def uses(self, change: int) -> None:
        """Somebody needs it for a moment, or no more."""
        self._uses += change

    def wanted(self, *, running: bool, now_s: float) -> bool:
        """Whether the camera should be open now; `running` is the operator's wish."""
        if not running:
            self._unwatched_since_s = None
        return running and (self._sessions > 0 or self._uses > 0 or self._idles(now_s))

    def changes_s(self) -> float | None:
        """When `wanted` will change by time alone; None: not before something else happens."""
        if self._sessions or self._unwatched_since_s is None:
            return None
        return self._unwatched_since_s + self.idle_stop_s

    def _idles(self, now_s: float) -> bool:
        if self._unwatched_since_s is not None and now_s >= self._unwatched_since_s + self.idle_stop_s:
            self._unwatched_since_s = None
        return self._unwatched_since_s is not None
