"""Tests that run only in the camera root, started there by tests/contract/test_picamera2.py."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

if importlib.util.find_spec("picamera2") is None:
    collect_ignore_glob = ["test_*.py"]


class Faults:
    """Faults of the virtual camera, listed in tests/rigs/virtual_camera/picamvirt.py."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def begin(self, *names: str) -> None:
        for name in names:
            (self._directory / name).touch()

    def end(self) -> None:
        for fault in self._directory.iterdir():
            fault.unlink()


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    directory = tmp_path / "faults"
    directory.mkdir()
    monkeypatch.setenv("EDGE_RIG_FAULTS", str(directory))
    return Faults(directory)
