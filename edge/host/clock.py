"""Whether the wall clock is set. A Raspberry Pi without a battery starts in the past."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0
# NTP_PHASE_LIMIT in the kernel: the error starts at this limit, and grows up to it while nothing adjusts the clock.
_UNSET_US = 16_000_000
_RTC_AGREES_S = 2.0
_TIMEDATED = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
_QUERY_EVERY_S = 5.0
_QUERY_TIMEOUT_S = 20.0


class _Timex(ctypes.Structure):
    """The beginning of struct timex, with space for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 512),
    )


def kernel_error_us() -> int:
    """The kernel's estimate of the clock's error. adjtimex(2) without a mode only reads.

    The flag STA_UNSYNC is not reliable: chrony sets it so that the kernel does not write to the clock chip, and
    timesyncd lets it return. `timedatectl` uses this number, too (systemd's pull request 13245). In a unit with
    ProtectClock= the call is refused and counts as unset; `Timedated` answers there.
    """
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
        return _UNSET_US
    return int(timex.maxerror)


class Timedated:
    """Queries systemd-timedated, outside of the sandbox, whether NTP has set the clock.

    No call waits: it starts a query, or takes the answer of an earlier one.
    """

    def __init__(self, command: Sequence[str] = _TIMEDATED, now_s: Callable[[], float] = time.monotonic) -> None:
        self._command = command
        self._now_s = now_s
        self._started_s = float("-inf")
        self._query: subprocess.Popen[str] | None = None

    def synchronized(self) -> bool:
        """Whether NTP has set the clock. False also means that there is no answer yet."""
        waited_s = self._now_s() - self._started_s
        if self._query is None:
            if waited_s >= _QUERY_EVERY_S:
                self._start()
            return False
        if self._query.poll() is None:
            if waited_s >= _QUERY_TIMEOUT_S:
                self._query.kill()
            return False
        output, _ = self._query.communicate()
        self._query = None
        return output.strip() == "yes"

    def _start(self) -> None:
        self._started_s = self._now_s()
        try:
            self._query = subprocess.Popen(  # noqa: S603  fixed
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:  # no systemd on this machine
            self._query = None


class SystemClock:
    """Whether the clock is set. Checked at most every second until it is; from then on it counts as set.

    By NTP: the kernel reports a small error (chrony, ntpd, timesyncd), directly or through timedated; or the file of
    timesyncd exists, which also covers a network that is down for hours. By a clock chip: the kernel read the chip at
    boot, and both still agree. A chip that lost its battery starts in another year; systemd then advances only the
    system's clock, so they disagree. `trusted`: the clock counts as set from the beginning.
    """

    def __init__(
        self,
        *,
        trusted: bool,
        root: Path = Path("/"),
        error_us: Callable[[], int] = kernel_error_us,
        timedated: Callable[[], bool] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._known = trusted
        self._root = root
        self._error_us = error_us
        self._timedated = timedated or Timedated().synchronized
        self._now_s = now_s
        self._wall_s = wall_s
        self._checked_s: float | None = None

    def known(self) -> bool:
        now_s = self._now_s()
        if not self._known and (self._checked_s is None or now_s - self._checked_s >= _CHECK_EVERY_S):
            self._checked_s = now_s
            if (source := self._source()) is not None:
                self._known = True
                log.info("clock known to be set source=%s", source)
        return self._known

    def _source(self) -> str | None:
        if self._error_us() < _UNSET_US:
            return "NTP"
        if (self._root / "run/systemd/timesync/synchronized").exists():
            return "timesyncd"
        if any(self._agrees_with(chip) for chip in self._chips()):
            return "a clock chip"
        return "NTP (timedated)" if self._timedated() else None

    def _chips(self) -> list[Path]:
        try:
            return sorted((self._root / "sys/class/rtc").glob("rtc*"))
        except OSError:  # no file descriptor is left
            return []

    def _agrees_with(self, chip: Path) -> bool:
        try:
            set_at_boot = (chip / "hctosys").read_text().strip() == "1"
            return set_at_boot and abs(int((chip / "since_epoch").read_text()) - self._wall_s()) < _RTC_AGREES_S
        except (OSError, ValueError):
            return False
