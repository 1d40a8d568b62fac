"""Limits how often a repeated event is logged."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(slots=True)
class _Entry:
    seen_s: float
    due_s: float
    wait_s: float
    count: int = 0
    """Events since the last log line."""


class LogLimit:
    """Logs the first event of a key at once, and repeated ones at growing intervals: `first_s`, doubled up to `cap_s`.

    A key that was quiet for its whole interval starts again at `first_s`. At most `limit` keys are remembered: the
    least recent one is dropped, and its next event counts as a first one.
    """

    def __init__(self, first_s: float = 60.0, cap_s: float = 3600.0, limit: int = 64) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._limit = limit
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def due(self, now_s: float, key: Hashable = None) -> int | None:
        """Count an event.

        Returns: how many events to log now, including those since the last log line. None: log nothing.
        """
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= self._limit:
                self._entries.popitem(last=False)
            self._entries[key] = _Entry(now_s, now_s + self._first_s, self._first_s)
            return 1
        self._entries.move_to_end(key)
        quiet = now_s - entry.seen_s >= entry.wait_s
        entry.seen_s = now_s
        entry.count += 1
        if now_s < entry.due_s:
            return None
        entry.wait_s = self._first_s if quiet else min(self._cap_s, 2 * entry.wait_s)
        entry.due_s = now_s + entry.wait_s
        count, entry.count = entry.count, 0
        return count
