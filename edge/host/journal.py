"""Sends the log to the journal under systemd, with fields, and to standard error elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

try:
    from systemd import journal
except ImportError:
    journal = None

if TYPE_CHECKING:
    from collections.abc import Callable

_NOISY = ("aiortc", "aioice", "uvicorn.access")


def set_up_logging(level: str, session: Callable[[], str | None]) -> None:
    """Send every log line to the journal or to standard error, with the session that it belongs to.

    `session` returns the session of the running task. In the journal it is the field EDGE_SESSION.
    """
    root = logging.getLogger()
    root.handlers = [_handler(session)]
    set_level(level)


def set_level(level: str) -> None:
    """Set the lowest level that is logged."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _handler(session: Callable[[], str | None]) -> logging.Handler:
    def add_session(record: logging.LogRecord) -> bool:
        about = session() or ""
        record.EDGE_SESSION = about
        record.about = f" [{about}]" if about else ""
        return True

    handler: logging.Handler
    if journal is not None and "JOURNAL_STREAM" in os.environ:
        handler = journal.JournalHandler(SYSLOG_IDENTIFIER="edge-streamer")
        handler.setFormatter(logging.Formatter("%(name)s%(about)s: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s%(about)s: %(message)s"))
    handler.addFilter(add_session)
    return handler
