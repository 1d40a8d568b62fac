"""`./dev attack`: the attacks send what their names say, and a short one has all its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING

import jwt
import pytest

from bench.attack import offers
from edge.client import Signer
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_offers_that_never_connect_have_a_token_each_and_several_subjects(tmp_path: Path) -> None:
    key_file, _ = Signer.generate("bench").save(tmp_path / "backend")
    sent = [json.loads(payload) for payload in islice(offers(key_file), 40)]
    claims = [jwt.decode(one["token"], options={"verify_signature": False}) for one in sent]
    assert len({one["jti"] for one in claims}) == 40
    assert len({one["sub"] for one in claims}) == 8


@pytest.mark.slow
def test_a_viewer_and_a_backend_are_served_during_a_short_attack(tmp_path: Path) -> None:
    name, file = "commands without a token", tmp_path / "rows.json"
    command_line = [sys.executable, "-m", "bench.attack", "--seconds", "2", "--json", str(file), name]
    subprocess.run(command_line, cwd=ROOT, check=True, timeout=60)
    [row] = json.loads(file.read_text())
    assert row["attack"] == name
    assert (row["refused"], row["unanswered"]) == (0, 0)
    assert row["answered"] > 1
    figures = ("per_s", "fps", "longest_gap_ms", "reply_p95_ms", "rss_before_mb", "rss_after_mb")
    assert [figure for figure in figures if not row[figure] > 0] == []
