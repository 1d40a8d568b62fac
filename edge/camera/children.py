"""The current camera process, and earlier ones that could not be killed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edge.camera.child_link import ChildLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.camera.wire import Order, Report
    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)


class Children:
    """Event loop only; the callbacks are called from the loop.

    `on_message` gets what the present process sends. `on_lost`: it has ended, or closed its socket. `on_stuck` gets the
    id of a process that SIGKILL did not end. `on_released`: one of those has ended after all.
    """

    def __init__(
        self,
        on_message: Callable[[AccessUnit | Report], None],
        on_lost: Callable[[], None],
        on_stuck: Callable[[int | None], None],
        on_released: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_stuck = on_stuck
        self._on_released = on_released
        self._present: ChildLink | None = None
        self._dropped: ChildLink | None = None
        self._stuck: dict[ChildLink, asyncio.Task[None]] = {}
        self._bug: Exception | None = None

    @property
    def pid(self) -> int | None:
        """None while there is no process, or while it is being started."""
        return None if self._present is None else self._present.pid

    async def spawn(self, command: Sequence[str]) -> None:
        """Start a process. Raises: OSError: it cannot be started."""
        # Set before the process is up: its first message may arrive before `spawn` returns.
        link = self._present = ChildLink(self._receive, self._lose)
        try:
            await link.spawn(command)
        except OSError:
            self._present = None
            raise

    def order(self, order: Order) -> None:
        """Send an order to the present process, if there is one."""
        if self._present is not None:
            self._present.order(order)

    def drop(self) -> None:
        """Ignore the present process from now on; `reap` kills it."""
        if self._present is not None:
            self._dropped, self._present = self._present, None

    async def reap(self) -> None:
        """Kill the dropped process. One that hangs in the kernel is left behind and watched.

        Raises: what a callback has raised, which is a bug.
        """
        if self._bug is not None:
            raise self._bug
        if (link := self._dropped) is None:
            return
        ended = await link.kill()
        self._dropped = None
        if ended:
            log.info("camera process ended pid=%s status=%s", link.pid, link.exit_status)
        else:
            self._stuck[link] = asyncio.create_task(self._watch(link), name=f"camera-stuck:{link.pid}")
            self._on_stuck(link.pid)

    async def end(self) -> None:
        """End the present process. Bounded; one that hangs in the kernel is left behind."""
        for watch in self._stuck.values():
            watch.cancel()
        self.drop()
        if self._dropped is not None:
            await self._dropped.end()

    async def _watch(self, link: ChildLink) -> None:
        await link.ended()
        log.info("camera process ended pid=%s status=%s", link.pid, link.exit_status)
        del self._stuck[link]
        self._on_released()

    def _receive(self, link: ChildLink, message: AccessUnit | Report) -> None:
        if link is self._present:
            self._on_message(message)

    def _lose(self, link: ChildLink, exc: Exception | None) -> None:
        if exc is not None and not isinstance(exc, OSError):
            self._bug = exc
        if link is self._present:
            self.drop()
            self._on_lost()
