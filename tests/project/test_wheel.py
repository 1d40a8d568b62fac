"""The wheel without extras: the demo names the one that is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = "import sys; sys.modules['amqtt'] = None; from edge.__main__ import main; sys.exit(main(sys.argv[1:]))"


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100)


def assert_extra_is_named(ended: subprocess.CompletedProcess[str]) -> None:
    assert (ended.returncode, ended.stdout) == (1, "")
    (said,) = ended.stderr.splitlines()
    assert "amqtt" in said
    assert said.endswith("pip install 'edge-streamer[demo]'")


def test_the_demo_without_its_broker_names_the_extra() -> None:
    assert_extra_is_named(run(sys.executable, "-c", BLOCKED, "demo", "--no-open"))


def test_the_demos_help_needs_no_extra() -> None:
    ended = run(sys.executable, "-c", BLOCKED, "demo", "--help")
    assert ended.returncode == 0
    assert "--http-port" in ended.stdout


@pytest.mark.slow
def test_an_installed_wheel_names_the_extra(tmp_path: Path) -> None:
    uv, venv = Path(sys.executable).with_name("uv"), tmp_path / "venv"
    for made in (
        run(uv, "--quiet", "venv", venv),
        run(uv, "--quiet", "pip", "install", "--python", venv / "bin/python", ROOT),
    ):
        assert made.returncode == 0, made.stderr
    assert_extra_is_named(run(venv / "bin/edge-streamer", "demo", cwd=tmp_path))
    assert run(venv / "bin/edge-streamer", "check-config", "--help", cwd=tmp_path).returncode == 0
