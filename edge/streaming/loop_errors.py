"""Logs errors that reach the event loop: in tasks of aiortc and aioice that nothing awaits, and in their timers."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

from edge.core.log_limit import LogLimit

if TYPE_CHECKING:
    import asyncio
    from collections import Counter

_SHORTAGES = (errno.EMFILE, errno.ENFILE)

log = logging.getLogger(__name__)


class LoopErrors:
    """An exception handler for the event loop that logs each kind of error at once, and its repetitions rarely.

    asyncio's own handler logs a traceback for each error: fifty viewers that are lost at once would fill the log.
    `counters` counts all as `loop_errors`.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._log_limit = LogLimit()

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For `loop.set_exception_handler`."""
        self._counters["loop_errors"] += 1
        kind = _kind(context)
        if count := self._log_limit.due(loop.time(), kind):
            keys = ("task", "future", "handle", "transport", "socket")
            source = next((context[key] for key in keys if key in context), None)
            exc = context.get("exception")
            # Where the last file descriptor was missing does not say what took them.
            shortage = isinstance(exc, OSError) and exc.errno in _SHORTAGES
            log.error(
                "error in the event loop: %s source=%r count=%d error=%s",
                context["message"],
                source,
                count,
                exc,
                exc_info=None if shortage else exc,
            )


def _kind(context: dict[str, Any]) -> tuple[str, ...]:
    """Identify the cause of an error: where its exception was raised, or its message if there is none."""
    exc: BaseException | None = context.get("exception")
    if exc is None:
        return (context["message"],)
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return type(exc).__name__, where
