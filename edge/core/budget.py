"""How often something may be done."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_BURST_S = 4
_CLIENTS = 256


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

    def wait_s(self) -> float:
        """After a refusal: until one more fits."""
        return (1 - (self._tokens or 0.0)) / self.per_s


class CommandRates:
    """How many commands a second: of each client, and of all. Four seconds' worth may come at once.

    Those about a session that is there have a budget of their own: however many offers come, and however many clients
    somebody makes up for them, who watches can still end it. At most `_CLIENTS` clients are remembered, the latest.
    """

    def __init__(self, each_per_s: float, all_per_s: float) -> None:
        self._each_per_s = each_per_s
        self._clients: OrderedDict[str, Budget] = OrderedDict()
        self._all = {about_session: Budget(all_per_s, _BURST_S * all_per_s) for about_session in (False, True)}

    def wait_s(self, client: str, now_s: float, *, about_session: bool) -> float | None:
        """None: one more is let in. Else it is not, and this is how long to wait."""
        own = self._clients.pop(client, None) or Budget(self._each_per_s, _BURST_S * self._each_per_s)
        self._clients[client] = own
        if len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)
        for budget in (own, self._all[about_session]):
            if not budget.take(now_s):
                return budget.wait_s()
        return None
