"""Which pictures left late, although nothing was wrong with them: a process that was held up."""

from __future__ import annotations

from dataclasses import dataclass

_FORGET_S = 0.001
"""How much the best age is given up for each picture: a camera that got slower is not late for ever."""


@dataclass(slots=True)
class Lateness:
    """Judges ages (from capture to here, in seconds) by the best of late; more than a frame over it is late."""

    frame_s: float
    _best_s: float | None = None

    def late(self, age_s: float) -> bool:
        """Whether a picture of this age is late."""
        self._best_s = age_s if self._best_s is None else min(age_s, self._best_s + _FORGET_S * self.frame_s)
        return age_s > self._best_s + self.frame_s
