"""What systemd is told: readiness, a line of status, that the daemon is well. Quietly nothing where it is not there."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import TYPE_CHECKING

try:
    from systemd import daemon as sd
except ImportError:  # not on every machine; without it there is no systemd to tell either
    sd = None

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0


def notify(state: str) -> None:
    """Send one notification (sd_notify(3)); nothing where no supervisor listens.

    One that it does not take ends nothing that runs; the first is logged.
    """
    if sd is None:
        return
    try:
        sd.notify(state)
    except OSError as exc:
        _refused(str(exc))


@functools.cache
def _refused(why: str) -> None:
    log.warning("systemd cannot be told: %s", why)


class Supervision:
    """Tells systemd READY when it runs, STATUS when it changes, and feeds the watchdog while the daemon is well.

    `status_line`: what is true, in a line. `unwell`: what is not well, in words; None: all is. An unwell daemon is
    not fed, so systemd ends and starts it again (`WatchdogSec` in the unit).
    """

    def __init__(self, status_line: Callable[[], str], unwell: Callable[[], str | None]) -> None:
        self._status_line = status_line
        self._unwell = unwell
        watchdog_us = int(os.environ.get("WATCHDOG_USEC") or 0)
        # A third of the time allowed: one late turn of the loop is no restart.
        self._every_s = min(_STATUS_EVERY_S, watchdog_us / 3e6) if watchdog_us else _STATUS_EVERY_S

    async def run(self, ready: asyncio.Event) -> None:
        """Notify until cancelled; then say STOPPING."""
        notify("READY=1")
        ready.set()
        told = ""
        complained = False
        try:
            while True:
                if (line := self._status_line()) != told:
                    notify(f"STATUS={line}")
                    told = line
                trouble = self._unwell()
                if trouble is None:
                    notify("WATCHDOG=1")
                elif not complained:
                    log.error("not well, systemd's watchdog is not fed: %s", trouble)
                complained = trouble is not None
                await asyncio.sleep(self._every_s)
        finally:
            notify("STOPPING=1")
