"""The HTTP server, a part of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from edge.core.log_limit import LogLimit
from edge.errors import Unavailable
from edge.local_api.connection import Connection

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from fastapi import FastAPI

    from edge.local_api.settings import ApiSettings

_BACKLOG = 16
_HEADERS = [
    # Another site must not show the page in a frame, where a click meant for that site would stop the camera.
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers to the daemon."""
        yield


class LocalServer:
    """Serves the app until cancelled. `counters` counts the connections that are refused."""

    def __init__(self, app: FastAPI, settings: ApiSettings, counters: Counter[str]) -> None:
        self._app = app
        self._settings = settings
        self._counters = counters

    async def run(self, ready: asyncio.Event) -> None:
        """Raises: Unavailable: the port is in use, or no file descriptor is left; the supervisor retries."""
        with self._bound() as listener:
            connection: Any = functools.partial(Connection, counters=self._counters, log_limit=LogLimit())
            server = _Server(
                uvicorn.Config(
                    self._app,
                    http=connection,
                    ws="none",
                    lifespan="off",
                    backlog=_BACKLOG,
                    headers=_HEADERS,
                    timeout_graceful_shutdown=1,
                    log_config=None,
                    # Its warnings are about requests, one line each: a client must not be able to fill the log.
                    log_level="error",
                ),
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
            try:
                ready.set()
                await asyncio.shield(serving)
            finally:
                server.should_exit = True
                await serving

    def _bound(self) -> socket.socket:
        try:
            listener = socket.socket()
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self._settings.host, self._settings.port))
            except OSError:
                listener.close()
                raise
        except OSError as exc:
            message = f"the local page cannot listen on port {self._settings.port}: {exc.strerror}"
            raise Unavailable(message) from exc
        return listener
