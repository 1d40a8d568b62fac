"""The backend's HTTP server, in the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from fastapi import FastAPI

_STOP_S = 1


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The caller handles signals."""
        yield


@asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the app on a bound socket. At the end open streams get one second to close."""
    config = uvicorn.Config(app, log_config=None, log_level="critical", timeout_graceful_shutdown=_STOP_S, ws="none")
    server = _Server(config)
    serve = asyncio.create_task(server.serve(sockets=[listener]), name="backend")
    try:
        yield
    finally:
        server.should_exit = True
        await serve
