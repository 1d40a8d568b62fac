"""The one script. That it sets up what it needs is shown by the demo's test on a fresh checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEV = ROOT / "dev"


def dev(*arguments: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": "/nonexistent"}
    return subprocess.run(
        [str(DEV), *arguments], capture_output=True, text=True, env=environment, check=False, timeout=30
    )


def test_it_is_posix_sh() -> None:
    assert DEV.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", str(DEV)], check=False).returncode == 0


def test_alone_it_lists_its_commands() -> None:
    told = dev()
    assert told.returncode == 0
    for command in ("demo", "test", "lint", "bench", "shell", "lock"):
        assert f"\n  {command}" in told.stdout


def test_an_unknown_command_is_told() -> None:
    told = dev("dance")
    assert told.returncode == 2
    assert "no such command: dance" in told.stderr


def test_an_unknown_benchmark_is_told() -> None:
    told = dev("bench", "dance")
    assert told.returncode == 1
    assert "no benchmark of this name: dance" in told.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the tools of any system and no Python."""
    for name in ("sh", "cat", "cksum", "dirname", "id", "tr", "flock", "rm"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def test_without_a_python_it_says_which(tools: Path) -> None:
    told = dev("demo", path=str(tools))
    assert told.returncode == 1
    assert told.stderr.strip() == (
        "dev: no Python 3.11 to 3.13 found; install python3, or name one: PYTHON=/path/to/python3 ./dev ..."
    )


def test_a_python_that_is_too_old_or_broken_is_passed_over(tools: Path) -> None:
    for name, text in (("python3", "#!/bin/sh\nexit 1\n"), ("python3.12", "#!/bin/sh\nexit 127\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    assert "no Python 3.11 to 3.13 found" in dev("demo", path=str(tools)).stderr


def test_packages_that_cannot_be_installed_are_listed_in_one_line(tools: Path) -> None:
    """As somebody without root and without sudo, on a machine with only a Python."""
    (tools / "python3").symlink_to("/usr/bin/python3")
    (tools / "id").unlink()
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    told = dev("test", path=str(tools))
    assert told.returncode == 1
    (line,) = told.stderr.strip().splitlines()
    assert "apt-get install" in line
    for package in ("chromium", "coturn", "faketime", "gcc", "libsystemd-dev"):
        assert package in line


def test_the_locks_name_hashes_and_no_host() -> None:
    for path in sorted((ROOT / "locks").glob("*.txt")):
        text = path.read_text()
        assert text.count("--hash=sha256:") > 100
        assert "://" not in text
