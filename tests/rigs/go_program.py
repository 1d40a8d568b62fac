"""Go programs, built with the packages of the system."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PION_VIEWER = Path(__file__).parent / "pion_viewer"


def build(source: Path, directory: Path) -> Path:
    """Build the program whose main.go is in `source`. Takes a minute without Go's build cache.

    Returns: the program, in `directory`.
    """
    package = directory / "src" / "edge" / source.name
    package.mkdir(parents=True)
    shutil.copy(source / "main.go", package)
    # Only a module may import packages with a version in their path.
    (package / "go.mod").write_text(f"module edge/{source.name}\n\ngo 1.19\n")
    # Debian's Go fits Debian's packages.
    go = "/usr/lib/go/bin/go" if Path("/usr/lib/go/bin/go").exists() else "go"
    subprocess.run(
        [go, "build", "-o", str(directory / source.name), f"./src/edge/{source.name}"],
        check=True,
        cwd=directory,
        env={**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPATH": f"{directory}:/usr/share/gocode"},
    )
    return directory / source.name
