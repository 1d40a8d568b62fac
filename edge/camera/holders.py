"""Who holds a camera that is busy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def camera_devices() -> list[str]:
    """The media devices that libcamera opens a camera by."""
    return sorted(str(path) for path in Path("/dev").glob("media*"))


def holders_of(devices: Iterable[str], proc: Path = Path("/proc")) -> list[str]:
    """The other processes that have one of these files open, as `name (process id)`.

    Only those that this process may look at: its own user's, or all for root.
    """
    wanted = set(devices)
    found = []
    for process in proc.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            opened = {os.readlink(entry) for entry in (process / "fd").iterdir()}  # noqa: PTH115  what is linked may be gone
            if opened & wanted:
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        except OSError:
            continue
    return sorted(found)
