"""Short runs of `./dev fuzz`, always with the same inputs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from tests.fuzz import structured
from tests.fuzz.__main__ import shares
from tests.fuzz.corpus import corpus
from tests.fuzz.progress import Progress
from tests.fuzz.targets import Targets
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHORT = {"engine": 60, "structured": 200, "guided-mqtt": 400, "guided-sdp": 400, "guided-text": 4000, "long": 1500}


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    with Targets(engine=True) as targets:
        yield targets


def fuzz(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=580)


@pytest.mark.parametrize("name", corpus())
def test_each_seed_has_one_outcome(targets: Targets, name: str) -> None:
    targets.run(corpus()[name])


@pytest.mark.slow
@pytest.mark.parametrize("stage", shares(1000, None))
def test_a_short_run_of_each_stage_passes(stage: str, tmp_path: Path) -> None:
    result = fuzz("--only", stage, "--inputs", SHORT[stage], "--found", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{SHORT[stage]} inputs, " in result.stdout
    assert ("edges from the seeds" in result.stdout) == stage.startswith("guided")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_thousand_inputs_pass(tmp_path: Path) -> None:
    result = fuzz("--inputs", "20000", "--found", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "20000 inputs in" in result.stdout


class _Fault(Exception):
    """A fault that the test injects."""


def test_a_failing_input_is_saved_in_its_shortest_form() -> None:
    class Faulty(Targets):
        def run(self, data: bytes) -> None:
            if len(data) > 3:
                raise _Fault

    saved: list[bytes] = []
    with Faulty() as targets, pytest.raises(_Fault):
        structured.run(st.binary(), targets, Progress(500), 1, saved.append)
    assert saved == [bytes(4)]


def test_again_runs_a_saved_input(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"o{}")
    assert fuzz("--again", tmp_path / "input").stdout == f"{tmp_path}/input: passed\n"
