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
        tokens = self.burst if self._tokens is None else self._tokens + (now_s - self._at_s) * self.per_s
        self._tokens = min(self.burst, tokens)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
