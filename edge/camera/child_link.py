"""The daemon's end of one camera process: its socket, its process, and how both end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from typing import TYPE_CHECKING, cast

from edge.camera.lifecycle import STOP_TIMEOUT_S
from edge.camera.wire import BadWire, Deframer, Stop, decode, encode

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Sequence

    from edge.camera.wire import Order, Report
    from edge.core.access_unit import AccessUnit

_TERMINATE_TIMEOUT_S = 0.5
_REAP_TIMEOUT_S = 2.0


class ChildLink(asyncio.Protocol):
    """Hands on what the camera process says, from the event loop.

    `on_lost` is called once, when nothing more will come, with the error where it was not the process's doing.
    """

    def __init__(
        self,
        on_message: Callable[[ChildLink, AccessUnit | Order | Report], None],
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
        """As of subprocess: negative is the number of the signal; None while it is not known."""
        return None if self._process is None else self._process.returncode

    async def spawn(self, command: Sequence[str]) -> None:
        """Start the process; `--fd N` is put behind the command. Cancelled, it leaves none behind.

        Raises: OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, "--fd", str(fd), pass_fds=(fd,), stdin=asyncio.subprocess.DEVNULL
                )
            except BaseException:
                self._hang_up()
                raise

    def order(self, order: Order) -> None:
        """Send an order; nothing happens where the process is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(order))

    async def end(self) -> None:
        """Ask the process to stop and to end, then make it. Bounded; it is reaped, also when cancelled."""
        try:
            self.order(Stop())
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write_eof()
            if not await self._gone_within(STOP_TIMEOUT_S):
                self._signal(signal.SIGTERM)
                await self._gone_within(_TERMINATE_TIMEOUT_S)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End the process at once and reap it."""
        self._hang_up()
        self._signal(signal.SIGKILL)
        await self._gone_within(_REAP_TIMEOUT_S)

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _gone_within(self, timeout_s: float) -> bool:
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._deframer.feed(data):
                self._on_message(self, decode(body))
        except BadWire:
            self._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self, exc)
