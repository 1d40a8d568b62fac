"""Remembers commands and tokens, so that each takes effect once however often it is delivered."""

from __future__ import annotations

import heapq
from typing import Generic, NamedTuple, TypeVar

from edge.contract.codes import Code
from edge.errors import Rejected

_T = TypeVar("_T")
Key = tuple[str, ...]
_FEW = 32
_SHARE_FOR_FEW = 0.25


class Row(NamedTuple):
    """A stored entry of a `kind`, from the reply client `client`. `reply` None: there is none, or none yet."""

    kind: str
    sender: str
    id: str
    until_s: float
    client: str
    reply: bytes | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.sender, self.id


class _Entry(NamedTuple, Generic[_T]):
    put_s: float
    until_s: float
    sender: str
    value: _T


class OnceWindow(Generic[_T]):
    """Stores a value for each key until it expires and cannot be delivered again.

    Times are seconds of the wall clock, which survive a restart. When `limit` entries are stored, or `each` of one
    sender, new ones are refused: dropping one would let it take effect twice. A quarter of the places belongs to
    senders that have fewer than `_FEW`, so that a few busy senders do not lock out the others; that quarter does not
    bind entries that are put as `reserved`. They have `reserve` more places, in total and of one sender.

    `yield_s`: for entries of senders that prove nothing. When the window is full, its oldest entry gives way if it is
    at least this old. It may then take effect twice; refusing everybody would be worse.
    """

    def __init__(self, limit: int = 4096, each: int = 1024, *, reserve: int = 0, yield_s: float = float("inf")) -> None:
        self._limit = limit
        self._each = each
        self._reserve = reserve
        self._yield_s = yield_s
        self._entries: dict[Key, _Entry[_T]] = {}
        self._ends: list[tuple[float, Key]] = []
        self._counts: dict[str, int] = {}

    def seen(self, key: Key, now_s: float) -> _T | None:
        """Return the stored value; None: the key is new."""
        self._expire(now_s)
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def put(self, key: Key, sender: str, value: _T, now_s: float, until_s: float, *, reserved: bool = False) -> None:
        """Store a new entry of a sender.

        Raises: Rejected: `rate_limited`: the window, or the sender's share of it, is full.
        """
        self._expire(now_s)
        self.drop(key)
        more = self._reserve if reserved else 0
        own, many = self._counts.get(sender, 0), (1 - _SHARE_FOR_FEW) * self._limit
        if own >= self._each + more or (own >= _FEW and len(self._entries) >= many and not reserved):
            self._make_room(now_s, sender)
        if len(self._entries) >= self._limit + more:
            self._make_room(now_s, None)
        self._entries[key] = _Entry(now_s, until_s, sender, value)
        self._counts[sender] = self._counts.get(sender, 0) + 1
        heapq.heappush(self._ends, (until_s, key))

    def drop(self, key: Key) -> None:
        """Drop an entry now."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._uncount(entry.sender)
        if len(self._ends) > 2 * (self._limit + self._reserve):
            self._ends = [(entry.until_s, key) for key, entry in self._entries.items()]
            heapq.heapify(self._ends)

    def __len__(self) -> int:
        return len(self._entries)

    def _make_room(self, now_s: float, sender: str | None) -> None:
        """Drop the oldest entry, of a sender or of all. Raises: Rejected: `rate_limited`: it is too young."""
        for key, entry in self._entries.items():
            if entry.put_s + self._yield_s > now_s:
                break
            if sender is None or entry.sender == sender:
                self.drop(key)
                return
        wait_s = max(1, round(min(self._ends[0][0] - now_s, self._yield_s)))
        raise Rejected(Code.RATE_LIMITED, "too many commands in the last minutes", retry_after_s=wait_s)

    def _expire(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            until_s, key = heapq.heappop(self._ends)
            # A dropped entry may have been stored again, with a later expiry.
            if key in self._entries and self._entries[key].until_s <= until_s:
                self._uncount(self._entries.pop(key).sender)

    def _uncount(self, sender: str) -> None:
        self._counts[sender] -= 1
        if not self._counts[sender]:
            del self._counts[sender]
