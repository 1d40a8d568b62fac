"""The documents: every link resolves, and the architecture page names every room."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "hw-tests/README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text())
    missing = []
    for link, anchor in links:
        target = document.parent / link if link else document
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(f"{link}#{anchor}")
    assert missing == []


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "edge").glob("*/__init__.py")}
    assert set(re.findall(r"^\| \[edge/(\w+)\]", page, re.MULTILINE)) == rooms
    drawn = " ".join(ET.parse(ROOT / "docs/architecture.svg").getroot().itertext())
    assert [room for room in rooms - {"client", "demo"} if room not in drawn] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_word_has_a_meaning_that_only_this_project_knows(document: Path) -> None:
    private = r"\b(told|wish(es|ed)?|wears?|knocks?|hurry|anew|telling|cannot be had)\b"
    assert [match[0] for match in re.finditer(private, document.read_text())] == []
