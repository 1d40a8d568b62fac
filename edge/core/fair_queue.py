"""A bounded queue that serves several senders in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Holds at most `limit` items. The senders take turns, so that one with many items does not delay the others.

    The items of one sender stay in order. When the queue is full, the oldest item of the sender with the most is
    dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: OrderedDict[str, deque[_T]] = OrderedDict()
        self._count = 0

    def put(self, sender: str, item: _T) -> bool:
        """Add an item. Returns whether another one had to be dropped."""
        full = self._count >= self._limit
        if full:
            self._remove(max(self._queues, key=lambda name: len(self._queues[name])))
        self._queues.setdefault(sender, deque()).append(item)
        self._count += 1
        return full

    def take(self) -> _T | None:
        """Remove and return the oldest item of the sender whose turn it is; None: the queue is empty."""
        sender = next(iter(self._queues), None)
        if sender is None:
            return None
        item = self._remove(sender)
        if sender in self._queues:
            self._queues.move_to_end(sender)
        return item

    def clear(self) -> None:
        self._queues.clear()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _remove(self, sender: str) -> _T:
        item = self._queues[sender].popleft()
        self._count -= 1
        if not self._queues[sender]:
            del self._queues[sender]
        return item
