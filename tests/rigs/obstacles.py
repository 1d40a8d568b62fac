"""What may be where a state file belongs. Needs root."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def directory(path: Path) -> None:
    path.mkdir()
    (path / "content").write_text("anything")


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_text("anything")
    path.symlink_to(target)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere/file")


def socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "directory": directory,
    "link": link,
    "link to itself": link_to_itself,
    "link to nothing": link_to_nothing,
    "pipe": os.mkfifo,
    "socket": socket,
    "device": device,
}
