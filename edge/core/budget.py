"""How often something may be done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """A token bucket: `per_s` on the long run, `burst` at once."""

    per_s: float
    burst: float
    _tokens: float | None = None
    _at_s: float = 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more fits."""
        return self.reserve(now_s, 0.0) is not None

    def reserve(self, now_s: float, at_most_s: float) -> float | None:
        """Take one more, and say in how many seconds it may be done; None, and nothing taken, beyond `at_most_s`."""
        tokens = self.burst if self._tokens is None else self._tokens + (now_s - self._at_s) * self.per_s
        self._tokens = min(self.burst, tokens)
        self._at_s = now_s
        wait_s = max(0.0, (1 - self._tokens) / self.per_s)
        if wait_s > at_most_s:
            return None
        self._tokens -= 1
        return wait_s
