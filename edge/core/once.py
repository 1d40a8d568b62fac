"""A command takes effect once, however often it is delivered."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from edge.contract.codes import Code
from edge.errors import Rejected

_T = TypeVar("_T")


class OnceWindow(Generic[_T]):
    """Remembers what was answered to each (sender, id) for as long as the command could be delivered again.

    Bounded: when full of commands that may still come again, new ones are refused rather than one forgotten.
    """

    def __init__(self, keep_s: float, limit: int = 4096) -> None:
        self._keep_s = keep_s
        self._limit = limit
        self._entries: OrderedDict[tuple[str, str], tuple[float, _T]] = OrderedDict()

    def seen(self, sender: str, command_id: str, now_s: float) -> _T | None:
        """What was put for this command; None where it is new."""
        self._forget(now_s)
        entry = self._entries.get((sender, command_id))
        return None if entry is None else entry[1]

    def put(self, sender: str, command_id: str, outcome: _T, now_s: float) -> None:
        """Remember a new command.

        Raises: Rejected: `rate_limited`, the window is full.
        """
        self._forget(now_s)
        if len(self._entries) >= self._limit:
            oldest_s = next(iter(self._entries.values()))[0]
            raise Rejected(
                Code.RATE_LIMITED,
                "too many commands in the last minutes",
                retry_after_s=max(1, round(oldest_s + self._keep_s - now_s)),
            )
        self._entries[sender, command_id] = (now_s, outcome)

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, now_s: float) -> None:
        while self._entries:
            put_s, _ = next(iter(self._entries.values()))
            if now_s - put_s < self._keep_s:
                return
            self._entries.popitem(last=False)
