"""Orders to the camera process that are answered by Done."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from edge.camera.wire import Done
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.camera.wire import Order

_TIMEOUT_S = 4.0


class Requests:
    """Event loop only. `send` passes an order to the process, or drops it while the camera is not open."""

    def __init__(self, send: Callable[[Order], None]) -> None:
        self._send = send
        self._tickets = itertools.count()
        self._pending: dict[int, asyncio.Future[Done]] = {}

    async def request(self, order: Callable[[int], Order]) -> Done:
        """Send the order that is made for a new ticket, and wait for its answer.

        Raises: CameraUnavailable: the order failed, or no answer arrived in time.
        """
        ticket = next(self._tickets)
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._pending[ticket] = answer
        try:
            self._send(order(ticket))
            async with asyncio.timeout(_TIMEOUT_S):
                done = await answer
        except TimeoutError:
            raise CameraUnavailable("the camera did not answer in time") from None
        finally:
            del self._pending[ticket]
        if done.error is not None:
            raise CameraUnavailable(done.error)
        return done

    def answer(self, done: Done) -> None:
        """An answer has arrived. It is dropped if its request has timed out."""
        if (pending := self._pending.get(done.ticket)) is not None and not pending.done():
            pending.set_result(done)

    def fail_all(self, error: str) -> None:
        """No more answers will arrive."""
        for ticket in list(self._pending):
            self.answer(Done(ticket, error=error))
