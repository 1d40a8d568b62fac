"""A small ext4 disk that can be frozen. A process that writes to it then hangs in the kernel (state D)."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GUARD = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; fsfreeze --unfreeze "$2"; umount --lazy "$2"'
_UNMOUNT_TIMEOUT_S = 20


class FreezableDisk:
    """Mounted at `path`. Needs root and a loop device."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frozen = False

    def freeze(self) -> None:
        _run("fsfreeze", "--freeze", str(self.path))
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            _run("fsfreeze", "--unfreeze", str(self.path))
            self._frozen = False


@contextmanager
def freezable_disk(directory: Path) -> Iterator[FreezableDisk]:
    """Thawed and unmounted when the context ends, and also when this process is killed."""
    image, path = directory / "disk.img", directory / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    _run("mkfs.ext4", "-q", str(image))
    _run("mount", "-o", "loop", str(image), str(path))
    guard = subprocess.Popen(["sh", "-c", _GUARD, "guard", str(os.getpid()), str(path)], start_new_session=True)
    disk = FreezableDisk(path)
    try:
        yield disk
    finally:
        disk.thaw()
        _unmount(path)
        guard.kill()
        guard.wait()


def hanging(pid: int) -> bool:
    """Whether a thread of the process is in state D."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return False
    return any(stat.rpartition(")")[2].split()[0] == "D" for stat in stats)


def _unmount(path: Path) -> None:
    """Writers that were killed while they hung need a moment to end."""
    deadline_s = time.monotonic() + _UNMOUNT_TIMEOUT_S
    while subprocess.run(["umount", str(path)], check=False, stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline_s:
            _run("umount", "--lazy", str(path))
            return
        time.sleep(0.1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
