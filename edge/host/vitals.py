"""Vital signs of the machine and of the daemon's processes, from /proc and /sys."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge.contract.messages import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_EVERY_S = 1.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_THERMOMETERS = ("cpu", "x86_pkg_temp")


class MachineVitals:
    """Reads at most once a second. A value that the machine does not have or does not show is None.

    Never raises: the status must be sent also when no file can be opened (EMFILE).

    Under-voltage is what the kernel's raspberrypi-hwmon saw in its last two seconds. The kernel does not report
    throttling: reading its file get_throttled put a backtrace into the kernel's log, and 6.12 removed the file
    (raspberrypi/linux, pull request 6697).
    """

    def __init__(self, state_dir: Path, *, root: Path = Path("/"), now_s: Callable[[], float] = time.monotonic) -> None:
        self._state_dir = state_dir
        self._root = root
        self._now_s = now_s
        self._read_s = float("-inf")
        self._latest = Vitals()

    def read(self, camera_pid: int | None) -> Vitals:
        """The current values. `camera_pid`: None if there is no camera process."""
        now_s = self._now_s()
        if now_s - self._read_s >= _READ_EVERY_S:
            self._read_s = now_s
            self._latest = self._measure(camera_pid)
        return self._latest

    def _measure(self, camera_pid: int | None) -> Vitals:
        memory = self._memory()
        daemon_bytes, daemon_s = self._process(os.getpid())
        camera_bytes, camera_s = self._process(camera_pid) if camera_pid is not None else (None, None)
        return Vitals(
            cpu_celsius=self._temperature(),
            under_voltage=self._under_voltage(),
            load_1min=_number(_text(self._root / "proc/loadavg")),
            memory_available_bytes=memory.get("MemAvailable"),
            memory_total_bytes=memory.get("MemTotal"),
            disk_free_bytes=self._disk_free(),
            uptime_s=_number(_text(self._root / "proc/uptime")),
            daemon_memory_bytes=daemon_bytes,
            daemon_cpu_s=daemon_s,
            camera_memory_bytes=camera_bytes,
            camera_cpu_s=camera_s,
        )

    def _temperature(self) -> float | None:
        for zone in _directories(self._root, "sys/class/thermal/thermal_zone*"):
            if _text(zone / "type").startswith(_THERMOMETERS):
                millidegrees = _number(_text(zone / "temp"))
                return None if millidegrees is None else millidegrees / 1000
        return None

    def _under_voltage(self) -> bool | None:
        for chip in _directories(self._root, "sys/class/hwmon/hwmon*"):
            if _text(chip / "name").strip() == "rpi_volt":
                alarm = _number(_text(chip / "in0_lcrit_alarm"))
                return None if alarm is None else alarm > 0
        return None

    def _memory(self) -> dict[str, int]:
        rows = (line.split() for line in _text(self._root / "proc/meminfo").splitlines())
        sizes = {row[0].removesuffix(":"): _whole(row[1]) for row in rows if row[2:] == ["kB"]}
        return {name: 1024 * size for name, size in sizes.items() if size is not None}

    def _disk_free(self) -> int | None:
        try:
            disk = os.statvfs(self._state_dir)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize

    def _process(self, pid: int) -> tuple[int | None, float | None]:
        """A process's resident memory in bytes, and its CPU time in seconds (user and system, all threads).

        Source: proc_pid_stat(5), fields 24, 14 and 15; the name in field 2 may contain spaces.
        """
        fields = _text(self._root / f"proc/{pid}/stat").rpartition(")")[2].split()
        pages, user, system = (_whole(fields[number]) if number < len(fields) else None for number in (21, 11, 12))
        memory_bytes = None if pages is None else pages * _PAGE_BYTES
        return memory_bytes, None if user is None or system is None else (user + system) / _TICKS_A_SECOND


def _directories(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:  # no file descriptor is left
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # missing, or a sensor that does not answer
        return ""


def _number(text: str) -> float | None:
    """The first number in a line. None: it is missing or not finite."""
    try:
        number = float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
