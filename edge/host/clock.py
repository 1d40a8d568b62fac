"""Whether the wall clock is known to be set: a Raspberry Pi without a battery starts in the past."""

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

_LOOK_EVERY_S = 1.0
# NTP_PHASE_LIMIT of the kernel: it counts up to this while nobody disciplines the clock, and starts there.
_UNSET_US = 16_000_000
_RTC_AGREES_S = 2.0
_TIMEDATED = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
_ASK_EVERY_S = 5.0
_ANSWER_S = 20.0


class _Timex(ctypes.Structure):
    """The head of struct timex, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 512),
    )


def kernel_error_us() -> int:
    """The error that the kernel allows for: adjtimex(2), which only reads where no mode is given.

    Not its STA_UNSYNC, which chrony sets to keep the kernel from writing to the clock chip, and which timesyncd lets
    come back: `timedatectl` judges by this number, too (systemd's pull request 13245). In a unit with ProtectClock= the
    call is refused, which counts as unset; `Timedated` answers there.
    """
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
        return _UNSET_US
    return int(timex.maxerror)


class Timedated:
    """Ask systemd-timedated whether NTP has set the clock. It reads the kernel's state outside of the sandbox.

    Never waits: a call starts the question, or takes the answer to an earlier one.
    """

    def __init__(self, command: Sequence[str] = _TIMEDATED, now_s: Callable[[], float] = time.monotonic) -> None:
        self._command = command
        self._now_s = now_s
        self._asked_s = float("-inf")
        self._asking: subprocess.Popen[str] | None = None

    def synchronized(self) -> bool:
        """True: NTP has set the clock. False: it has not, or there is no answer yet."""
        waited_s = self._now_s() - self._asked_s
        if self._asking is None:
            if waited_s >= _ASK_EVERY_S:
                self._ask()
            return False
        if self._asking.poll() is None:
            if waited_s >= _ANSWER_S:
                self._asking.kill()
            return False
        said, _ = self._asking.communicate()
        self._asking = None
        return said.strip() == "yes"

    def _ask(self) -> None:
        self._asked_s = self._now_s()
        try:
            self._asking = subprocess.Popen(  # noqa: S603  fixed
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:  # no systemd on this machine
            self._asking = None


class SystemClock:
    """Asked until it is known once, at most every second; then it stays known.

    Set by NTP: the kernel says so (chrony, ntpd, timesyncd), itself or through timedated, or timesyncd's file, which
    outlasts a network that is away for hours. Set from a clock chip: the kernel took the time from it at boot, and both
    still agree, so nothing had to correct it; a chip that lost its battery starts in another year, and systemd then
    advances the system's clock alone. `trusted`: it counts as known, whatever sets it.
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
        self._looked_s: float | None = None

    def known(self) -> bool:
        now_s = self._now_s()
        if not self._known and (self._looked_s is None or now_s - self._looked_s >= _LOOK_EVERY_S):
            self._looked_s = now_s
            if (source := self._source()) is not None:
                self._known = True
                log.info("the clock is set, by %s", source)
        return self._known

    def _source(self) -> str | None:
        if self._error_us() < _UNSET_US:
            return "NTP"
        if (self._root / "run/systemd/timesync/synchronized").exists():
            return "timesyncd"
        chips = sorted((self._root / "sys/class/rtc").glob("rtc*"))
        if any(self._came_from(chip) for chip in chips):
            return "a clock chip"
        return "NTP, says timedated" if self._timedated() else None

    def _came_from(self, chip: Path) -> bool:
        try:
            set_at_boot = (chip / "hctosys").read_text().strip() == "1"
            return set_at_boot and abs(int((chip / "since_epoch").read_text()) - self._wall_s()) < _RTC_AGREES_S
        except (OSError, ValueError):
            return False
