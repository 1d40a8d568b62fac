"""The rule that finds pictures that left late because the process was held up, not because of the camera."""

from __future__ import annotations

from dataclasses import dataclass

_DRIFT = 0.001
"""How far the lowest age rises with each picture, in frames: a slower camera does not count as late for ever."""


@dataclass(slots=True)
class Lateness:
    """Compares ages (seconds from capture to sending) with the lowest recent age.

    A picture is late if its age exceeds that age by more than one frame time.
    """

    frame_s: float
    _lowest_s: float | None = None

    def late(self, age_s: float) -> bool:
        """Record the age of a picture. Returns whether it is late."""
        self._lowest_s = age_s if self._lowest_s is None else min(age_s, self._lowest_s + _DRIFT * self.frame_s)
        return age_s > self._lowest_s + self.frame_s
