"""Facts about a process and the board from /proc and /sys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_THERMOMETER = Path("/sys/class/thermal/thermal_zone0/temp")
_MODEL = Path("/proc/device-tree/model")


def board_model() -> str:
    """The model from the firmware, such as "Raspberry Pi 4 Model B Rev 1.4"; "other" without a device tree."""
    return _MODEL.read_text().strip("\0\n ") if _MODEL.exists() else "other"


def temperature_c() -> float | None:
    """Temperature of the processor; None without a sensor."""
    return int(_THERMOMETER.read_text()) / 1000 if _THERMOMETER.exists() else None


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, for all its threads.

    Source: proc_pid_stat(5), fields 14 and 15; the name in field 2 may contain spaces.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources in use by a process."""

    rss_mb: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pairs = (line.partition(":\t") for line in lines)
        fields = {name: value.split()[0] for name, _, value in pairs if value.strip()}
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(int(fields["VmRSS"]) / 1024, descriptors, int(fields["Threads"]))
