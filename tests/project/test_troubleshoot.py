"""docs/troubleshoot.md quotes messages that the programs really print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshoot.md").read_text()
SOURCES = "\n".join(
    path.read_text() for room in ("edge", "deploy") for path in sorted((ROOT / room).rglob("*.py")) if path.is_file()
)
# A sentence that is continued in the next string of the source is one sentence.
TEXT = re.sub(r'"\s*\n\s*f?"', "", SOURCES)


@pytest.mark.parametrize("quoted", re.findall(r'`"([^"`]+)"`', PAGE))
def test_a_quoted_message_is_one_of_the_programs(quoted: str) -> None:
    assert quoted in TEXT


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`(edge_streamer_\w+)`", PAGE))))
def test_a_named_variable_is_one_of_the_roles(key: str) -> None:
    assert f"\n{key}:" in (ROOT / "deploy/ansible/roles/edge_streamer/defaults/main.yml").read_text()
