"""Runs the daemon's parts: starts them in order, restarts what is unavailable, stops them in reverse order."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Protocol

from edge.core.backoff import Backoff
from edge.core.log_limit import LogLimit
from edge.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.errors import EdgeError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 8.0


class Part(Protocol):
    """A part of the daemon. It runs until it is cancelled, and sets `ready` once it accepts requests.

    Raises: Unavailable: run it again later. Anything else is a bug.
    """

    async def run(self, ready: asyncio.Event) -> None: ...


class Supervisor:
    """Runs parts in the event loop. `on_error`: receives each error after which a part is run again."""

    def __init__(self, on_error: Callable[[EdgeError], None]) -> None:
        self._on_error = on_error
        self._tasks: list[asyncio.Task[None]] = []
        self._raised: BaseException | None = None

    async def start(self, name: str, part: Part) -> None:
        """Start a part and wait until it is ready. After `START_TIMEOUT_S` it goes on starting in the background.

        Raises: the error of a part that crashed.
        """
        ready = asyncio.Event()
        task = asyncio.create_task(self._run(name, part, ready), name=name)
        self._tasks.append(task)
        waiting = asyncio.create_task(ready.wait())
        done, _ = await asyncio.wait({task, waiting}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not done:
            log.warning("part not ready yet part=%s after_s=%.0f", name, START_TIMEOUT_S)
        if task.done():
            self._raise(task)

    async def wait(self) -> None:
        """Wait until a part crashes. Raises: its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._raise(task)

    async def stop(self) -> None:
        """Stop all parts, the last started first, each within a deadline. Logs errors that were not raised before."""
        while self._tasks:
            task = self._tasks.pop()
            ended_before = task.done()
            task.cancel()
            _, late = await asyncio.wait({task}, timeout=_STOP_TIMEOUT_S)
            if late:
                log.error("part did not stop part=%s after_s=%.0f", task.get_name(), _STOP_TIMEOUT_S)
            elif not task.cancelled() and (exc := task.exception()) is not None and exc is not self._raised:
                when = "ran" if ended_before else "stopped"
                log.error("part failed while it %s part=%s", when, task.get_name(), exc_info=exc)

    def _raise(self, task: asyncio.Task[None]) -> None:
        self._raised = task.exception()
        task.result()

    async def _run(self, name: str, part: Part, ready: asyncio.Event) -> None:
        backoff, log_limit = Backoff(), LogLimit()
        while True:
            started_s = asyncio.get_running_loop().time()
            try:
                await part.run(ready)
            except Unavailable as exc:
                self._on_error(exc)
                if asyncio.get_running_loop().time() - started_s > backoff.cap_s:
                    backoff.reset()
                wait_s = backoff.next_s(random.random())  # noqa: S311  jitter
                if count := log_limit.due(asyncio.get_running_loop().time(), exc.message):
                    log.warning("part unavailable part=%s count=%d error=%s", name, count, exc.message)
                # The parts after it do not depend on it.
                ready.set()
                await asyncio.sleep(wait_s)
            else:
                message = f"the part {name} ended unexpectedly"
                raise RuntimeError(message)
