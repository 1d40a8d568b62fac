"""Files that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edge.errors import ConfigInvalid
from edge.files import read_file
from edge.host.state_file import StateFile
from edge.settings import load_settings


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_file(tmp_path / "file", 7) == b"content"


def test_pipes_devices_directories_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(300_000))
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "large", Path("a\0b"), tmp_path / "no"):
        with pytest.raises(OSError, match=r"\w"):
            read_file(path)


@pytest.mark.parametrize("content", ['{"reason": "\\ud800"}', "{", "[]", "7", "[" * 100_000, " " * 300_000])
def test_a_damaged_state_file_counts_as_missing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    assert StateFile(path).read() is None


def test_a_pipe_as_a_state_file_counts_as_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.json")
    assert StateFile(tmp_path / "state.json").read() is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a = " + b"9" * 5000, "not TOML: "),
        (b"a = '\xb1'", "not TOML: the byte at position 5 is not UTF-8"),
        (b"a = " + b"[" * 20_000, "not TOML: "),
        (json.dumps("x" * 300_000).encode(), "larger than 262144 bytes"),
        (b'[camera]\npath = "a\\u0000b"', "camera.path: contains a NUL character"),
    ],
)
def test_damaged_settings_are_named_in_a_sentence(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(path)
    assert [found for found in caught.value.faults if fault in found]
