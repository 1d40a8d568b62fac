"""A TCP proxy between a client and its broker that can delay, cut or refuse connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class TcpProxy:
    """Forwards connections from `port` to `target` on loopback, with a delay of `delay_s` in each direction."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.refusing = False
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._near_only = False
        self._left: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        for far in self._left:
            far.transport.abort()

    async def cut(self, *, near_only: bool = False) -> None:
        """Abort every connection. `near_only`: keep the connections to the broker open."""
        self._near_only = near_only
        tasks = set(self._open)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._near_only = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
        except (asyncio.CancelledError, ConnectionError):
            pass  # cut, or one side has closed: abort the other side, too
        finally:
            self._open.discard(task)
            writer.transport.abort()
            if self._near_only:
                self._left.append(far_writer)
            else:
                far_writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while piece := await reader.read(65536):
            # Delay each piece without reducing the throughput.
            loop.call_later(self.delay_s, writer.write, piece)
        await asyncio.sleep(self.delay_s)
        raise ConnectionResetError
