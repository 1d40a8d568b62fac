"""Finish what takes long after its session ended: aioice tries for a minute to free a relay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

_running: set[asyncio.Task[None]] = set()


def in_background(coro: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
    """Run to the end, whatever happens to the caller: cancelled halfway, sockets and tasks of aioice would stay."""
    task = asyncio.create_task(coro, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task
