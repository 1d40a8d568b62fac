"""A Debian 13 root in which the real picamera2 has a camera: built once for a machine, kept in the tests' cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).parents[2]
_RECIPE = PROJECT / "tests" / "rigs" / "virtual_camera"
ENVIRONMENT = "/opt/edge"
_BUILD_TIMEOUT_S = 1200


class CameraRoot:
    """Needs root on this machine. `run` executes a command in it, with the project at /edge, read and never written."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("EDGE_TEST_CACHE", Path.home() / ".cache" / "edge-streamer"))
        recipe = b"".join(file.read_bytes() for file in sorted(_RECIPE.iterdir()) if file.is_file())
        self.path = cache / f"camera-root-{hashlib.sha256(recipe).hexdigest()[:12]}"
        cache.mkdir(parents=True, exist_ok=True)

    def build(self) -> None:
        """The root, and in it the project's environment beside the system's packages, made by `dev` as on a Pi."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = self.path / "built"
            if not done.exists():
                subprocess.run(["rm", "-rf", str(self.path)], check=True)
                built = _ran([str(_RECIPE / "build.sh"), str(self.path)], {}, _BUILD_TIMEOUT_S)
                assert built.returncode == 0, f"build.sh: {built.returncode}\n{built.stdout[-4000:]}"
                done.touch()
            self.run(["/edge/dev", "env"], environment={"EDGE_VENV": ENVIRONMENT}, timeout_s=_BUILD_TIMEOUT_S)

    def python(
        self, *arguments: str, environment: Mapping[str, str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python; its output, both streams in one. The exit status is the caller's to judge."""
        return self._inside([f"{ENVIRONMENT}/bin/python", *arguments], environment or {}, timeout_s)

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 300
    ) -> str:
        """Run a command that has to succeed; its output."""
        done = self._inside(command, environment or {}, timeout_s)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def _inside(
        self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        inside = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **environment}
        more = {
            "PROJECT": str(PROJECT),
            "RIG_CWD": "/edge",
            "RIG_ENV": " ".join(f"{name}={value}" for name, value in inside.items()),
        }
        return _ran([str(_RECIPE / "inside.sh"), str(self.path), *command], more, timeout_s)


def _ran(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )
