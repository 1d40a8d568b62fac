"""The service as a running rig."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.sessions.rig import Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(**limits: Any) -> AsyncIterator[Rig]:
        rig = Rig(tmp_path, **limits)
        ready = asyncio.Event()
        task = asyncio.create_task(rig.sessions.run(ready))
        await ready.wait()
        yield rig
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    return run
