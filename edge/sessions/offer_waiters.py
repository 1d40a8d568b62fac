"""Lets candidates wait for their offer: the broker promises no order."""

from __future__ import annotations

import asyncio

from edge.contract.messages import CANDIDATES_LIMIT

_WAIT_S = 5.0
_LIMIT = 256
_LIMIT_EACH = CANDIDATES_LIMIT + 1
"""One session's candidates and their end mark."""


class OfferWaiters:
    """Who waits for the offer of which session: at most `_LIMIT_EACH` of one sender, `_LIMIT` of all."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[tuple[str, asyncio.Future[None]]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiters.values()))

    async def wait(self, session_id: str, sender: str) -> None:
        """Return when the offer has arrived, after `_WAIT_S`, or at once beyond the limits."""
        of_sender = sum(name == sender for waiters in self._waiters.values() for name, _ in waiters)
        if len(self) >= _LIMIT or of_sender >= _LIMIT_EACH:
            return
        entry = sender, asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(session_id, [])
        waiters.append(entry)
        try:
            async with asyncio.timeout(_WAIT_S):
                await entry[1]
        except TimeoutError:
            pass
        finally:
            if entry in waiters:
                waiters.remove(entry)
            if not waiters and self._waiters.get(session_id) is waiters:
                del self._waiters[session_id]

    def arrived(self, session_id: str) -> None:
        """The offer has arrived."""
        for _, waiter in self._waiters.pop(session_id, []):
            if not waiter.done():
                waiter.set_result(None)
