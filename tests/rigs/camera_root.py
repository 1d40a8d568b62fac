"""A Debian 13 root in which the real picamera2 has a camera: built once for a machine, kept in the tests' cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.rigs.cached_root import BUILD_TIMEOUT_S, CachedRoot, ran

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).parents[2]
_RECIPE = PROJECT / "tests" / "rigs" / "virtual_camera"
ENVIRONMENT = "/opt/edge"


class CameraRoot:
    """Needs root on this machine. `run` executes a command in it, with the project at /edge, read and never written."""

    def __init__(self) -> None:
        self._root = CachedRoot("camera-root", _RECIPE)
        self.path = self._root.path

    def build(self) -> None:
        """The root, and in it the project's environment beside the system's packages, made by `dev` as on a Pi."""
        with self._root.built():
            self.run(["/edge/dev", "env"], environment={"EDGE_VENV": ENVIRONMENT}, timeout_s=BUILD_TIMEOUT_S)

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
        return ran([str(_RECIPE / "inside.sh"), str(self.path), *command], more, timeout_s)
