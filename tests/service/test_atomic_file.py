"""Atomic replacement: order of the system calls, and what a failure leaves."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from edge.host.atomic_file import AtomicFile
from tests.rigs.full_disk import fill, small_disk

ROOT = Path(__file__).parents[2]


def test_the_content_is_synced_before_the_rename_and_the_directory_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def noted_rename(path: Path, target: Any) -> Path:
        calls.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    path = tmp_path / "own" / "file"
    path.parent.mkdir()
    AtomicFile(path).replace(b"new")
    assert calls == ["sync file.new", "rename file.new", "sync own", f"sync {tmp_path.name}"]
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    AtomicFile(path).replace(b"old")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(OSError, match=r"file\.new"):
        AtomicFile(path).replace(b"new")
    assert path.read_bytes() == b"old"


def test_a_write_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        fill(disk)
        os.truncate(disk / "filler", 1024 * 1024)
        with pytest.raises(OSError, match="No space"):
            AtomicFile(disk / "file").replace(bytes(8 * 1024 * 1024))
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_no_other_module_replaces_or_renames_files() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "edge").rglob("*.py"))
        if any(word in path.read_text() for word in ("fsync", "os.replace", "os.rename", ".rename("))
    ]
    assert found == ["edge/host/atomic_file.py", "edge/host/damaged_files.py"]
