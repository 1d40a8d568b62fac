"""An arm64 system under emulation, like a Raspberry Pi without its hardware and without systemd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.rigs.cached_root import CachedRoot

if TYPE_CHECKING:
    from collections.abc import Sequence

_RIGS = Path(__file__).parent
_ENVIRONMENT = "QEMU_CPU=cortex-a72 PYTHONUNBUFFERED=1"


class Arm64Root:
    """A context manager for a new layer on the root of a suite. It shares this machine's network."""

    def __init__(self, suite: str, directory: Path) -> None:
        self._lower = CachedRoot(f"arm64-{suite}", _RIGS / "arm64", suite)
        self._directory = directory
        self.path = directory / "root"

    def __enter__(self) -> Self:
        with self._lower.built():
            pass
        for name in ("root", "upper", "work"):
            (self._directory / name).mkdir()
        layers = f"lowerdir={self._lower.path},upperdir={self._directory}/upper,workdir={self._directory}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "edge-arm64", self.path], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)

    def run(self, *command: str, timeout_s: float = 600) -> str:
        """Run a command and fail if it fails. Returns: its output, stdout and stderr combined."""
        result = subprocess.run(
            self._inside(command),
            check=False,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout[-4000:]}"
        return result.stdout

    def start(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """Start a command. Stop it with SIGTERM to its process group."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self._inside(command),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _inside(self, command: Sequence[str]) -> list[str]:
        return [str(_RIGS / "virtual_camera" / "inside.sh"), str(self.path), *command]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "RIG_ENV": _ENVIRONMENT}
