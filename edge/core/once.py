"""A command takes effect once, however often it is delivered; a token opens one session."""

from __future__ import annotations

import heapq
from typing import Generic, NamedTuple, TypeVar

from edge.contract.codes import Code
from edge.errors import Rejected

_T = TypeVar("_T")


class Row(NamedTuple):
    """What is written down of an entry of a `kind` that came by a reply `client`. No `reply`: not yet, or never."""

    kind: str
    sender: str
    id: str
    until_s: float
    client: str
    reply: bytes | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.sender, self.id


class OnceWindow(Generic[_T]):
    """Remembers something of each (sender, id) until it cannot come again.

    Moments are of the wall clock, in seconds: they hold over a restart. Bounded: when full of what may still come
    again, new ones are refused rather than one forgotten; `each` is the share of one sender.
    """

    def __init__(self, limit: int = 4096, each: int = 1024) -> None:
        self._limit = limit
        self._each = each
        self._entries: dict[tuple[str, str], tuple[float, _T]] = {}
        self._ends: list[tuple[float, tuple[str, str]]] = []
        self._counts: dict[str, int] = {}

    def seen(self, sender: str, entry_id: str, now_s: float) -> _T | None:
        """What was put for it; None where it is new."""
        self._forget(now_s)
        entry = self._entries.get((sender, entry_id))
        return None if entry is None else entry[1]

    def put(self, sender: str, entry_id: str, value: _T, now_s: float, until_s: float) -> None:
        """Remember a new one.

        Raises: Rejected: `rate_limited`, the window is full, or the sender's share of it.
        """
        self._forget(now_s)
        count = self._counts.get(sender, 0)
        if len(self._entries) >= self._limit or count >= self._each:
            wait_s = max(1, round(self._ends[0][0] - now_s))
            raise Rejected(Code.RATE_LIMITED, "too many commands in the last minutes", retry_after_s=wait_s)
        self._entries[sender, entry_id] = (until_s, value)
        self._counts[sender] = count + 1
        heapq.heappush(self._ends, (until_s, (sender, entry_id)))

    def drop(self, sender: str, entry_id: str) -> None:
        """Forget it now."""
        if self._entries.pop((sender, entry_id), None) is not None:
            self._uncount(sender)
        if len(self._ends) > 2 * self._limit:
            self._ends = [(until_s, key) for key, (until_s, _) in self._entries.items()]
            heapq.heapify(self._ends)

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            until_s, key = heapq.heappop(self._ends)
            # One that was dropped may be there again, until later.
            if key in self._entries and self._entries[key][0] <= until_s:
                del self._entries[key]
                self._uncount(key[0])

    def _uncount(self, sender: str) -> None:
        self._counts[sender] -= 1
        if not self._counts[sender]:
            del self._counts[sender]
