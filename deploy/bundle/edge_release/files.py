"""Write files and links that are complete after a power cut; run programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from edge_release.layout import UNPACK, USER

if TYPE_CHECKING:
    from pathlib import Path


class Refused(Exception):
    """The request cannot be carried out; nothing was changed."""


def reason_of(error: OSError | subprocess.SubprocessError) -> str:
    """What failed, where, and why, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]}: {(error.stderr or '').strip()[-600:] or f'exit status {error.returncode}'}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def log(message: str) -> None:
    print(f"edge-release: {message}", file=sys.stderr, flush=True)


def write_json(path: Path, fields: dict[str, Any]) -> None:
    replace_file(path, json.dumps(fields).encode(), 0o644)


def replace_file(path: Path, content: bytes, mode: int, *, group: bool = False) -> None:
    """Write the whole file to disk, or leave the old one. `group`: the daemon's group may read it."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, so that it is never readable for others
            file.write(content)
            os.fchmod(descriptor, mode)
            if group:
                shutil.chown(fresh, "root", USER)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)  # on a full disk, half a file would take the last space
        raise OSError(error.errno, error.strerror, str(path)) from error
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
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        timeout=1200,
        # pip unpacks wheels in its temporary directory, and /tmp may be small. /etc/pip.conf is not for us.
        env={**os.environ, "TMPDIR": str(UNPACK), "PIP_CONFIG_FILE": "/dev/null"},
    )


def run_or_raise(*command: str) -> None:
    run(*command).check_returncode()


def output(*command: str) -> str:
    return run(*command).stdout.strip()
