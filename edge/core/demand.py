"""The rule that says when the camera should be open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CameraDemand:
    """Open while there are viewers and for `idle_stop_s` afterwards, so that a page refresh does not close the camera.

    Queries change nothing. All times come from one monotonic clock.
    """

    idle_stop_s: float
    _running: bool = True
    _sessions: int = 0
    _uses: int = 0
    _idle_since_s: float | None = None

    def set_running(self, running: bool) -> None:
        """The operator started or stopped the stream. A stop also ends the idle time."""
        self._running = running
        if not running:
            self._idle_since_s = None

    def set_sessions(self, count: int, now_s: float) -> None:
        """Set the number of sessions. The idle time starts when the last one ends."""
        if self._sessions > 0 and count == 0 and self._running:
            self._idle_since_s = now_s
        elif count > 0:
            self._idle_since_s = None
        self._sessions = count

    def add_uses(self, change: int) -> None:
        """Count short uses: a snapshot, camera controls, a trial of settings."""
        self._uses += change

    def wanted(self, now_s: float) -> bool:
        """Whether the camera should be open now."""
        return self._running and (self._sessions > 0 or self._uses > 0 or now_s < self._idle_end_s)

    def next_change_s(self, now_s: float) -> float | None:
        """When `wanted` changes although nothing else happens, always later than now. None: never."""
        idle = self._running and not self._sessions and not self._uses and now_s < self._idle_end_s
        return self._idle_end_s if idle else None

    @property
    def _idle_end_s(self) -> float:
        return float("-inf") if self._idle_since_s is None else self._idle_since_s + self.idle_stop_s
