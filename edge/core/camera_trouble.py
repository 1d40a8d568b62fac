"""The rule that limits the events of a camera that keeps failing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_FAULTS = 8


@dataclass(slots=True)
class CameraTrouble:
    """Decides which camera events to publish. A camera may fail for days, and the event store is bounded.

    Publishes each remedy's 1st, 2nd, 4th, 8th... attempt, and each fault once (at most `_FAULTS` faults). Publishes the
    first return of the picture at once, and later ones once the camera has been healthy for a while.
    """

    tries: Counter[str | None] = field(default_factory=Counter)
    faults: set[tuple[str, str]] = field(default_factory=set)
    unreported: bool = False
    reported: bool = False

    def tried(self, remedy: str | None) -> bool:
        """Count an attempt. Returns whether to publish it."""
        self.tries[remedy] += 1
        publish = self.tries[remedy].bit_count() == 1
        self.unreported |= publish
        return publish

    def failed(self, code: str, message: str) -> bool:
        """Record a fault. Returns whether to publish that the camera is lost."""
        if (code, message) in self.faults or len(self.faults) >= _FAULTS:
            return False
        self.faults.add((code, message))
        self.unreported = True
        return True

    def recovered(self, *, healthy: bool) -> bool:
        """Record that the camera runs, and whether it is healthy. Returns whether to publish that it is back."""
        publish = self.unreported and (healthy or not self.reported)
        if publish:
            self.reported, self.unreported = True, False
            self.faults.clear()
        return publish
