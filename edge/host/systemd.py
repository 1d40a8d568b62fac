"""Notifications to systemd: readiness, a status line, the watchdog. Without systemd they do nothing."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from typing import TYPE_CHECKING

from edge.core.log_limit import LogLimit

try:
    from systemd import daemon as sd
except ImportError:  # `missing_package` reports it in a service of systemd
    sd = None

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0


def missing_package() -> str | None:
    """Why the journal would get no session ids. None: it gets them, or this is not a service of systemd."""
    if sd is not None or "NOTIFY_SOCKET" not in os.environ:
        return None
    return (
        "systemd runs this service (NOTIFY_SOCKET is set), but the Python package systemd-python is not installed: "
        "apt install python3-systemd, or pip install 'edge-streamer[pi]'"
    )


def notify(state: str) -> None:
    """Send one notification (sd_notify(3)), if a supervisor listens. Only the first failure is logged.

    Never waits: systemd-python's own function blocks while the supervisor does not read.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(errors="replace"), address)
    except (OSError, ValueError) as exc:
        _log_failure(str(exc))


@functools.cache
def _log_failure(why: str) -> None:
    log.warning("systemd notification failed error=%s", why)


def _watchdog_us() -> int:
    try:
        return max(0, int(os.environ.get("WATCHDOG_USEC") or 0))
    except ValueError:
        log.warning("WATCHDOG_USEC ignored, not a number")
        return 0


class Supervision:
    """Sends READY at the start, STATUS when it changes, and WATCHDOG while the daemon is healthy.

    `status_line` returns the status in one line. `fault` says what is wrong; None: nothing is. Without WATCHDOG
    systemd restarts the daemon (`WatchdogSec` in the unit).
    """

    def __init__(self, status_line: Callable[[], str], fault: Callable[[], str | None]) -> None:
        self._status_line = status_line
        self._fault = fault
        self._log_limit = LogLimit()
        watchdog_us = _watchdog_us()
        # A third of the limit, so that one slow turn of the event loop causes no restart.
        self._every_s = min(_STATUS_EVERY_S, watchdog_us / 3e6) if watchdog_us else _STATUS_EVERY_S

    async def run(self, ready: asyncio.Event) -> None:
        """Notify until cancelled, and then send STOPPING."""
        notify("READY=1")
        ready.set()
        sent = ""
        unhealthy = False
        try:
            while True:
                # One line: a control character would end the notification or begin another one.
                line = "".join(character if character.isprintable() else " " for character in self._line())
                if line != sent:
                    notify(f"STATUS={line}")
                    sent = line
                trouble = self._fault()
                if trouble is None:
                    notify("WATCHDOG=1")
                elif not unhealthy:
                    log.error("daemon unhealthy, systemd will restart it reason=%s", trouble)
                unhealthy = trouble is not None
                await asyncio.sleep(self._every_s)
        finally:
            notify("STOPPING=1")

    def _line(self) -> str:
        try:
            return self._status_line()
        except Exception:
            if self._log_limit.due(asyncio.get_running_loop().time(), "status line"):
                log.exception("status line not composed because of a bug")
            return "the status cannot be composed because of a bug: see the log"
