"""The documents quote messages that the programs really print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
QUOTED = [(page, quoted) for page, text in PAGES.items() for quoted in re.findall(r'`"([^"`]+)"`', text)]
SOURCES = "\n".join(
    path.read_text() for room in ("edge", "deploy") for path in sorted((ROOT / room).rglob("*.py")) if path.is_file()
)
# Join strings that continue on the next line of the source.
TEXT = re.sub(r'"\s*\n\s*f?"', "", SOURCES)


@pytest.mark.parametrize(("page", "quoted"), QUOTED)
def test_every_quoted_message_exists_in_the_code(page: str, quoted: str) -> None:
    assert quoted in TEXT, f"docs/{page}.md"


def test_the_pages_about_faults_quote_messages() -> None:
    assert {"troubleshoot", "camera", "backend"} <= {page for page, _ in QUOTED}


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`(edge_streamer_\w+)`", PAGES["troubleshoot"]))))
def test_every_named_variable_exists_in_the_role(key: str) -> None:
    assert f"\n{key}:" in (ROOT / "deploy/ansible/roles/edge_streamer/defaults/main.yml").read_text()
