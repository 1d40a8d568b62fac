"""Debian roots that the tests build once and keep in their cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BUILD_TIMEOUT_S = 1800
CACHE = Path(os.environ.get("EDGE_TEST_CACHE", Path.home() / ".cache" / "edge-streamer"))


class CachedRoot:
    """The root that `build.sh` of a recipe's directory builds. A changed recipe or argument builds a new root."""

    def __init__(self, name: str, recipe: Path, *arguments: str) -> None:
        files = [file.read_bytes() for file in sorted(recipe.iterdir()) if file.is_file()]
        content = b"\0".join([*files, *(argument.encode() for argument in arguments)])
        self.path = CACHE / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
        self._command = [str(recipe / "build.sh"), str(self.path), *arguments]
        CACHE.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def built(self) -> Iterator[None]:
        """Build the root if it is missing. Inside the context, no other process builds it or adds to it."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = self.path / "built"
            if not done.exists():
                subprocess.run(["rm", "-rf", str(self.path)], check=True)
                self.path.mkdir()
                built = ran(self._command, {}, BUILD_TIMEOUT_S)
                assert built.returncode == 0, f"{self._command}: {built.returncode}\n{built.stdout[-4000:]}"
                done.touch()
            yield


def ran(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; standard error is merged into standard output."""
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
