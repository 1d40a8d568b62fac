"""One camera process as the daemon sees it: its socket, and its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, cast

from edge.camera.lifecycle import STOP_TIMEOUT_S
from edge.camera.reports import decode
from edge.camera.wire import BadWire, Deframer, Stop, encode

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Sequence

    from edge.camera.wire import Order, Report
    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)

_TERMINATE_TIMEOUT_S = 0.5
_REAP_TIMEOUT_S = 2.0


def _environment() -> dict[str, str]:
    # Without a fixed threshold, glibc keeps freed pictures in its heap: 27 MB more after the third opening.
    return {"MALLOC_MMAP_THRESHOLD_": "131072", **os.environ}


class ChildLink(asyncio.Protocol):
    """Event loop only; so are the callbacks. `on_message` gets each message of the process.

    `on_lost` is called once, when the socket is closed. It gets the error unless the process closed it.
    """

    def __init__(
        self,
        on_message: Callable[[ChildLink, AccessUnit | Report], None],
        on_lost: Callable[[ChildLink, Exception | None], None],
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._deframer = Deframer()
        self._transport: asyncio.WriteTransport | None = None
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """None while it is being started."""
        return None if self._process is None else self._process.pid

    @property
    def exit_status(self) -> int | None:
        """As in `subprocess`: negative for the number of a signal, None while the process runs."""
        return None if self._process is None else self._process.returncode

    async def spawn(self, command: Sequence[str]) -> None:
        """Start the process; `--fd N` is appended to the command. If cancelled, it leaves no process behind.

        Raises: OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, "--fd", str(fd), pass_fds=(fd,), stdin=asyncio.subprocess.DEVNULL, env=_environment()
                )
            except BaseException:
                self._disconnect()
                raise

    def order(self, order: Order) -> None:
        """Send an order. Does nothing after the socket is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(order))

    async def end(self) -> None:
        """Stop the process: by an order, then SIGTERM, then SIGKILL. Bounded, and reaps it even if cancelled."""
        try:
            self.order(Stop())
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write_eof()
            if not await self._ended_within(STOP_TIMEOUT_S):
                self._signal(signal.SIGTERM)
                await self._ended_within(_TERMINATE_TIMEOUT_S)
        finally:
            await self.kill()

    async def kill(self) -> bool:
        """Send SIGKILL and reap the process. False: it has not ended; it hangs in the kernel (state D)."""
        self._disconnect()
        self._signal(signal.SIGKILL)
        return await self._ended_within(_REAP_TIMEOUT_S)

    async def ended(self) -> None:
        """Wait until the process has ended, however long that takes."""
        if self._process is not None:
            await self._process.wait()

    def _disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Popen.send_signal would reap the process itself, and asyncio would lose its status.
                os.kill(self._process.pid, number)

    async def _ended_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.ended()
        except TimeoutError:
            return False
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._deframer.feed(data):
                self._on_message(self, decode(body))
        except BadWire as exc:
            log.error("protocol error from the camera process pid=%s error=%s", self.pid, exc)
            self._disconnect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self, exc)
