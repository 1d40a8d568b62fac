"""The HTTP server as a part of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from edge.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from edge.local_api.settings import ApiSettings


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The daemon's signals are the daemon's."""
        yield


class LocalServer:
    """Serves the app until cancelled."""

    def __init__(self, app: FastAPI, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def run(self, ready: asyncio.Event) -> None:
        """Raises: Unavailable: the port is taken; the supervisor tries again."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self._settings.host, self._settings.port))
            except OSError as exc:
                message = f"the local page cannot listen on port {self._settings.port}: {exc.strerror}"
                raise Unavailable(message) from exc
            server = _Server(
                uvicorn.Config(self._app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, ws="none"),
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
            try:
                ready.set()
                await asyncio.shield(serving)
            finally:
                server.should_exit = True
                await serving
