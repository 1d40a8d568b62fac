"""How long to wait before the next attempt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Exponential, capped, with full jitter: each wait is a random value between `least_s` and the bound.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    first_s: float = 0.5
    cap_s: float = 10.0
    least_s: float = 0.0
    tries: int = 0

    def next_s(self, draw: float) -> float:
        """Return the next wait and count an attempt. `draw`: a random number, uniform in [0, 1)."""
        bound_s = min(self.cap_s, self.first_s * 2.0 ** min(self.tries, 32))
        self.tries += 1
        return self.least_s + max(0.0, bound_s - self.least_s) * draw

    def reset(self) -> None:
        self.tries = 0
