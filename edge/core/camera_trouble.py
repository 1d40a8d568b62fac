"""Which events a camera that fails on and on is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_FAULTS = 8


@dataclass(slots=True)
class CameraTrouble:
    """What was told of the camera since it was last well: it may fail for days, and other events are to be kept, too.

    Each remedy's 1st, 2nd, 4th, 8th... try, each fault once and at most `_FAULTS` of them. That it is back: the first
    time at once; then once it is well.
    """

    tries: Counter[str | None] = field(default_factory=Counter)
    faults: set[tuple[str, str]] = field(default_factory=set)
    owed: bool = False
    back: bool = False

    def tried(self, remedy: str | None) -> bool:
        """Whether to tell that it is tried."""
        self.tries[remedy] += 1
        told = self.tries[remedy].bit_count() == 1
        self.owed |= told
        return told

    def failed(self, code: str, message: str) -> bool:
        """Whether to tell that it is lost."""
        if (code, message) in self.faults or len(self.faults) >= _FAULTS:
            return False
        self.faults.add((code, message))
        self.owed = True
        return True

    def runs(self, *, well: bool) -> bool:
        """Whether to tell that it is back."""
        told = self.owed and (well or not self.back)
        if told:
            self.back, self.owed = True, False
            self.faults.clear()
        return told
