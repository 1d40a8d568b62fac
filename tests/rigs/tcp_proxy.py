"""A TCP proxy between a client and its broker: slow, cut, or gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class TcpProxy:
    """Passes what comes to its `port` on to `target` on loopback, `delay_s` later in each direction."""

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
        """Break every connection, without a goodbye of anybody. `near_only`: the broker does not notice."""
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
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))
        except (asyncio.CancelledError, ConnectionError):
            pass  # cut, or one side is gone: so is the other
        finally:
            self._open.discard(task)
            writer.transport.abort()
            if self._near_only:
                self._left.append(far_writer)
            else:
                far_writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while piece := await reader.read(65536):
            # Later, not slower: what comes meanwhile waits no longer for it.
            loop.call_later(self.delay_s, writer.write, piece)
        await asyncio.sleep(self.delay_s)
        raise ConnectionResetError
