"""The nest of parts: slow starts, crashes, and errors while stopping."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from edge import supervisor
from edge.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.errors import EdgeError


class Part:
    """A part that is ready at once unless `slow`. `fails_when`: "running", "stopping" or "never"."""

    def __init__(self, fails_when: str = "never", *, slow: bool = False) -> None:
        self.fails_when = fails_when
        self.slow = slow
        self.crash = asyncio.Event()

    async def run(self, ready: asyncio.Event) -> None:
        if not self.slow:
            ready.set()
        try:
            await self.crash.wait()
        finally:
            if self.fails_when == "stopping":
                raise ValueError("a bug while stopping")
        raise ValueError("a bug while running")


def ignore(_: EdgeError) -> None: ...


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_slow_part_is_logged_and_the_next_part_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 0.05)
    parts = Supervisor(ignore)
    await parts.start("slow", Part(slow=True))
    await parts.start("quick", Part())
    assert [record.getMessage() for record in caplog.records] == ["part not ready yet part=slow after_s=0"]
    await parts.stop()
    assert errors(caplog) == []


@pytest.mark.parametrize(
    ("make", "logged"),
    [
        (lambda: Part("running"), []),
        (lambda: Part("stopping"), ["part failed while it stopped part=other"]),
    ],
    ids=["one crashes", "another fails while it stops"],
)
async def test_crash_is_raised_and_only_other_errors_are_logged(
    make: Callable[[], Part], logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    parts, crashing, other = Supervisor(ignore), Part("running"), make()
    await parts.start("crashing", crashing)
    await parts.start("other", other)
    crashing.crash.set()
    with pytest.raises(ValueError, match="while running"):
        await parts.wait()
    await parts.stop()
    assert errors(caplog) == logged


async def test_second_of_two_crashes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    parts, first, second = Supervisor(ignore), Part("running"), Part("running")
    await parts.start("first", first)
    await parts.start("second", second)
    first.crash.set()
    second.crash.set()
    with pytest.raises(ValueError, match="while running"):
        await parts.wait()
    await asyncio.sleep(0)
    await parts.stop()
    (line,) = errors(caplog)
    assert line.startswith("part failed while it ran part=")
