"""Short runs of what `./dev fuzz` does at length, always the same ones."""

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
    with Targets(engine=True) as made:
        yield made


def fuzz(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=580)


@pytest.mark.parametrize("name", corpus())
def test_each_seed_has_its_outcome(targets: Targets, name: str) -> None:
    targets.run(corpus()[name])


@pytest.mark.parametrize("stage", shares(1000, None))
def test_a_stage_in_short(stage: str, tmp_path: Path) -> None:
    told = fuzz("--only", stage, "--inputs", SHORT[stage], "--found", tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"{SHORT[stage]} inputs, " in told.stdout
    assert ("edges from the seeds" in told.stdout) == stage.startswith("guided")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_thousand_inputs(tmp_path: Path) -> None:
    told = fuzz("--inputs", "20000", "--found", tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "20000 inputs in" in told.stdout


class _Fault(Exception):
    """Planted."""


def test_what_breaks_something_is_kept_in_a_short_form() -> None:
    class Faulty(Targets):
        def run(self, data: bytes) -> None:
            if len(data) > 3:
                raise _Fault

    kept: list[bytes] = []
    with Faulty() as targets, pytest.raises(_Fault):
        structured.run(st.binary(), targets, Progress(500), 1, kept.append)
    assert kept == [bytes(4)]


def test_an_input_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"o{}")
    assert fuzz("--again", tmp_path / "input").stdout == f"{tmp_path}/input: well\n"
