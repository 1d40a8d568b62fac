"""docs/settings.md equals the generated reference, and the sample has every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.settings import Settings
from edge.settings_reference import keys, reference, sections

ROOT = Path(__file__).parents[2]
KEYS = [(name, key) for name, model in sections(Settings) for key in keys(model)]


def test_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == reference(), "python -m edge.settings_reference > docs/settings.md"


def test_every_key_has_a_description() -> None:
    assert [
        f"{name}.{key}"
        for name, model in sections(Settings)
        for key, field in keys(model).items()
        if not field.description
    ] == []


def sample() -> set[tuple[str, str]]:
    """Sections and keys of the sample, including those in comments. An inline table is a section."""
    found: set[tuple[str, str]] = set()
    section = ""
    for line in (ROOT / "config/edge-streamer.toml").read_text().splitlines():
        if header := re.match(r"\[([a-z.]+)\]", line):
            section = header[1]
        elif inline := re.match(r"(?:# )?([a-z_]+) = \{ (.*) \}", line):
            found |= {(f"{section}.{inline[1]}", key) for key in re.findall(r"([a-z_]+) = ", inline[2])}
        elif key := re.match(r"(?:# )?([a-z_]+) = ", line):
            found.add((section, key[1]))
    return found


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_sample_has_the_key(name: str, key: str) -> None:
    # The parameters of a claim depend on the provisioning template.
    assert (name, key) in sample() | {("mqtt.claim", "parameters")}


def test_sample_has_no_unknown_keys() -> None:
    assert sample() - set(KEYS) == set()
