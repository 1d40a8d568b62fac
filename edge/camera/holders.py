"""Which processes hold a busy camera."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def camera_devices() -> list[Path]:
    """The media devices. libcamera locks those of a camera that it acquires."""
    return sorted(Path("/dev").glob("media*"))


def holders_of(devices: Iterable[Path]) -> list[str]:
    """Other processes that hold a lock on one of these files, as `name (process id)`.

    Source: proc_locks(5); libcamera's MediaDevice::lock, which is lockf(3).
    """
    inodes = {device.stat().st_ino for device in devices if device.exists()}
    found = set()
    try:
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:  # hidden from services on some systems
        return []
    for line in locks:
        fields = line.split()
        # The line of a waiting process has an arrow as its second field.
        if len(fields) < 8 or not fields[4].isdigit():
            continue
        pid, inode = int(fields[4]), int(fields[5].rpartition(":")[2])
        if inode in inodes and pid != os.getpid():
            found.add(f"{_name(pid)} ({pid})")
    return sorted(found)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "process"
