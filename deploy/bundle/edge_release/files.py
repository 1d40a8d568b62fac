"""Files and links that are whole after a power cut, and programs that are run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from edge_release.layout import USER

if TYPE_CHECKING:
    from pathlib import Path


class Refused(Exception):
    """The request cannot be carried out; nothing was changed."""


def log(message: str) -> None:
    print(f"edge-release: {message}", file=sys.stderr, flush=True)


def write_json(path: Path, fields: dict[str, Any]) -> None:
    replace_file(path, json.dumps(fields).encode(), 0o644)


def replace_file(path: Path, content: bytes, mode: int, *, group: bool = False) -> None:
    """Whole and on disk, or not at all. `group`: the daemon may read it."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, so that it is never readable for others
        file.write(content)
        os.fchmod(descriptor, mode)
        if group:
            shutil.chown(fresh, "root", USER)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    sync_directory(path.parent)


def set_link(path: Path, target: Path) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, timeout=1200
    )


def needed(*command: str) -> None:
    run(*command).check_returncode()


def output(*command: str) -> str:
    return run(*command).stdout.strip()
