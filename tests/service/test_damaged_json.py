"""JSON files that are damaged at random places: the daemon reads what is left, and writes them again."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI

from edge.daemon import Daemon
from edge.host.damaged_files import DamagedFiles
from edge.host.state_file import StateFile
from edge.settings import Settings
from edge.tuning.state import State, recall
from tests.rigs.damage import KINDS, damage_json
from tests.rigs.state_files import FILES, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "device": {"id": "cam-1"},
            "mqtt": {"host": "127.0.0.1", "tls": False, "shadow": "own"},
            "auth": {"mode": "off", "trust_clock": True},
            "state": {"dir": tmp_path},
            "camera": {"source": "synthetic"},
        }
    )


@contextmanager
def daemon_of(settings: Settings) -> Iterator[Daemon]:
    """A daemon that has read its files, and does not run."""
    daemon = Daemon(settings)
    yield daemon
    for database in (daemon._event_store, daemon._ledger):
        database._close({})


@pytest.mark.parametrize("places", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
async def test_json_file_damaged_anywhere_is_read_and_written(
    name: str, places: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thousand syncs and a thousand local APIs take long.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("edge.daemon.make_app", lambda *_: FastAPI())
    chance = random.Random(places)
    contents = {each: json.dumps(fields).encode() for each, fields in FILES.items()}
    noticed = set()
    for number in range(places):
        kind = KINDS[number % len(KINDS)]
        for each, content in contents.items():
            (tmp_path / each).write_bytes(damage_json(content, kind, chance) if each == name else content)
        with daemon_of(settings) as daemon:
            pass
        # One of its two files says that the stream is stopped.
        assert not daemon._desired.running, number
        if daemon._damaged.count:
            noticed.add(kind)
        assert await daemon._desired.save()
        copy = daemon._desired._copy_writer
        assert copy is not None
        assert await copy.begin()
        for store in (daemon._run_store, daemon._tuning_store, daemon._controls_store):
            assert await store.write(FILES[store._path.name])
        for each, fields in FILES.items():
            found = StateFile(tmp_path / each).read()
            assert found is not None, (number, each)
            assert found == fields or (fields == STOPPED and not found["running"]), (number, each)
    assert noticed == set(KINDS)
    assert len(list(tmp_path.glob(f"{name}.damaged-*"))) == 3


@pytest.mark.parametrize("first", [None, b"", b'{"running": true}'], ids=["missing", "empty", "incomplete"])
async def test_stream_stays_stopped_if_its_state_and_the_copy_are_damaged(
    first: bytes | None, settings: Settings, tmp_path: Path
) -> None:
    """A stop whose reply was a success may have been stored there."""
    (tmp_path / "run.json").write_text('{"end": "clean"}')
    if first is not None:
        (tmp_path / "wish.json").write_bytes(first)
    (tmp_path / "wish.copy.json").write_bytes(b"{")
    for _ in range(2):  # the first start is cut off before it has written anything
        with daemon_of(settings) as daemon:
            assert not daemon._desired.running
            assert "damaged or unreadable" in (daemon._desired.reason or "")
    assert await daemon._desired.save()
    with daemon_of(settings) as daemon:
        assert daemon._desired.known
        assert not daemon._desired.running


def nested(levels: int) -> bytes:
    return b'{"confirmed":' * levels + b"0" + b"}" * levels


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 200_000, id="deep list"),
        pytest.param(b'{"a":' * 40_000, id="deep object"),
        *(pytest.param(nested(levels), id=f"{levels} levels") for levels in (33, 500, 900)),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{", id="cut"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": "\xff"}', id="not UTF-8"),
        pytest.param(b"1" * 5000, id="long number"),
        pytest.param(b" " * 300_000, id="large"),
    ],
)
async def test_json_file_of_any_kind_is_set_aside_and_written(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    damaged = DamagedFiles()
    store = StateFile(path, damaged=damaged)
    assert store.read() is None
    assert damaged.count == 1
    assert await store.write(STOPPED)
    assert store.read() == STOPPED


@pytest.mark.parametrize("levels", [40, 400, 900])
def test_deep_nesting_in_stored_remote_settings_is_damage(levels: int, tmp_path: Path) -> None:
    """Python parses it, and fails when it copies the settings."""
    path = tmp_path / "tuning.json"
    path.write_bytes(nested(levels))
    damaged = DamagedFiles()
    state = recall(StateFile(path, damaged=damaged), copy.deepcopy)
    assert (state, damaged.count) == (State(), 1)


def test_json_file_with_32_levels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(nested(32))
    assert StateFile(path).read() == json.loads(nested(32))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
async def test_directory_or_pipe_in_place_of_a_json_file_is_set_aside(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    make(path)
    store = StateFile(path)
    assert store.read() is None
    assert await store.write(STOPPED)
    assert store.read() == STOPPED


async def test_json_file_is_written_after_its_directory_was_removed(tmp_path: Path) -> None:
    store = StateFile(tmp_path / "state" / "wish.json")
    for _ in range(2):
        assert await store.write(STOPPED)
        assert store.read() == STOPPED
        await asyncio.to_thread(shutil.rmtree, tmp_path / "state")
