"""Something that is no file appears in the place of a state file: it is set aside, and the state is written."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import pytest

from edge.core.once import Row
from edge.host.damaged_files import DamagedFiles
from edge.host.ledger import Ledger
from edge.host.state_file import StateFile
from tests.rigs.full_disk import fill, small_disk
from tests.rigs.obstacles import OBSTACLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESERVE_BYTES = 64 * 1024

MAKE = pytest.mark.parametrize("make", OBSTACLES.values(), ids=OBSTACLES)


async def reserved(store: StateFile) -> None:
    """The reserve is made in the background."""
    assert store._reserving is not None
    await asyncio.wait({store._reserving}, timeout=5)


@MAKE
@pytest.mark.parametrize("suffix", ["", ".new", ".reserve", ".reserve.new"])
async def test_obstacle_at_run_time_is_set_aside_and_the_state_is_written(
    suffix: str, make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = DamagedFiles()
    store = StateFile(tmp_path / "wish.json", damaged=damaged, reserve=True)
    assert await store.write({"number": 0})
    await reserved(store)
    place, reserve = tmp_path / f"wish.json{suffix}", tmp_path / "wish.json.reserve"
    reserve.unlink()  # or it would not be made again
    place.unlink(missing_ok=True)
    make(place)
    kind = stat.S_IFMT(place.lstat().st_mode)
    for number in (1, 2):
        assert await store.write({"number": number})
        await reserved(store)
    assert (damaged.count, caplog.text.count(f"set aside file={place} ")) == (1, 1)
    (kept,) = tmp_path.glob(f"{place.name}.damaged-*")
    assert stat.S_IFMT(kept.lstat().st_mode) == kind
    assert (stat.S_ISREG(reserve.lstat().st_mode), reserve.stat().st_size) == (True, RESERVE_BYTES)
    assert stat.S_ISREG((tmp_path / "wish.json").lstat().st_mode)
    assert store.read() == {"number": 2}


async def test_files_that_a_power_cut_left_are_no_obstacles(tmp_path: Path) -> None:
    damaged = DamagedFiles()
    store = StateFile(tmp_path / "wish.json", damaged=damaged, reserve=True)
    for suffix in (".new", ".reserve", ".reserve.new"):
        (tmp_path / f"wish.json{suffix}").write_bytes(b"{")
    assert await store.write({"number": 1})
    await reserved(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wish.json", "wish.json.reserve"]
    assert damaged.count == 0


async def test_full_disk_is_noticed_and_its_reserve_used_behind_an_obstacle(tmp_path: Path) -> None:
    """Otherwise, the stream would start although a stop may have been lost."""
    with small_disk(tmp_path) as disk:
        store = StateFile(disk / "wish.json", reserve=True)
        assert store.read() is None
        (disk / "wish.json.new").mkdir()
        fill(disk)
        assert store.full()
        (disk / "wish.json.new").mkdir()
        assert await store.write({"running": False})


@MAKE
def test_obstacle_in_place_of_a_database_at_run_time_is_set_aside_and_the_rows_are_written(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path, damaged = tmp_path / "once.sqlite", DamagedFiles()
    ledger = Ledger(path, lambda: 0, damaged)
    rows = [Row("command", "token:anna", f"c-{number}", 100.0, "bff-1", None) for number in range(2)]
    assert ledger.open() == []
    ledger.put(rows[0])
    assert ledger._write(ledger._take())
    path.unlink()
    make(path)
    ledger.put(rows[1])
    assert ledger._write(ledger._take())
    ledger._close({})
    assert damaged.count == 1
    again = Ledger(path, lambda: 0, DamagedFiles())
    assert again.open() == rows
    again._close({})
