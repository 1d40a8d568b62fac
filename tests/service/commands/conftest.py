"""The command interface, running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.commands.rig import CommandRig, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def rig() -> AsyncIterator[CommandRig]:
    made = CommandRig()
    async with running(made.outbox.run), running(made.commands.run):
        yield made
    assert not made.counters["command_bugs"] or made.sessions.bug
    assert not made.counters["intake_bugs"]
