"""What is remembered of accepted commands and used tokens."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from edge.contract.codes import Code
from edge.core.authority import Token
from edge.core.once import Row
from edge.core.principal import Scope
from edge.errors import Rejected
from edge.host.ledger import Ledger
from edge.signalling.once import Once
from tests.service.commands.rig import running
from tests.service.fakes import FakeLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def test_used_tokens_of_busy_viewers_stay_used_after_a_restart() -> None:
    """Rows are read in any order: those of a busy viewer may come last, when few places are left."""
    ledger = FakeLedger()
    for viewer in (*(f"viewer-{number}" for number in range(96)), "busy-1", "busy-2"):
        for number in range(1000 if viewer.startswith("busy") else 20):
            ledger.put(Row("token", viewer, f"{viewer}-{number}", 300.0, "", None))
    once = Once(ledger)
    for row in ledger.rows.values():
        with pytest.raises(Rejected) as used:
            once.use(Token(row.sender, row.id, 300.0, frozenset({Scope.VIEW})), 1.0, opens=True)
        assert used.value.code is Code.REPLAYED


@pytest.mark.parametrize("damaged_row", [False, True])
async def test_used_tokens_survive_starts_at_which_the_clock_is_ahead(tmp_path: Path, damaged_row: bool) -> None:
    """The clock is set before the first token is accepted: until then, nothing may expire."""
    wall_s = 1000.0
    token = Token("anna", "a", 2000.0, frozenset({Scope.VIEW}))
    later = Token("anna", "b", 3000.0, frozenset({Scope.VIEW}))

    @asynccontextmanager
    async def started() -> AsyncIterator[Once]:
        ledger = Ledger(tmp_path / "once.sqlite", lambda: wall_s)
        once = Once(ledger)
        async with running(ledger.run):
            yield once

    async with started() as once:
        once.use(token, wall_s, opens=True)
    if damaged_row:
        with closing(sqlite3.connect(tmp_path / "once.sqlite")) as database, database:
            database.execute("INSERT INTO once VALUES ('token', 'boris', 'c', 1e300, '', NULL)")
    wall_s = 1e9
    async with started():
        pass
    async with started() as once:
        wall_s = 1001.0
        with pytest.raises(Rejected) as used:
            once.use(token, wall_s, opens=True)
        assert used.value.code is Code.REPLAYED
        once.use(later, wall_s, opens=True)
    wall_s = 2500.0
    async with started() as once:
        once.use(Token("anna", "d", 4000.0, frozenset({Scope.VIEW})), wall_s, opens=True)
    with closing(sqlite3.connect(tmp_path / "once.sqlite")) as database:
        assert database.execute("SELECT id FROM once ORDER BY id").fetchall() == [("b",), ("d",)]
