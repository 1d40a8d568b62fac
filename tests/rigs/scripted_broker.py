"""A minimal MQTT broker that withholds acknowledgements or rejects shadow subscriptions on request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

_CONNECT, _PUBLISH, _SUBSCRIBE, _PING, _DISCONNECT = 1, 3, 8, 12, 14
_SHADOW = b"shadow"


class ScriptedBroker:
    """`acknowledging`: whether publishes are acknowledged. `shadow_fault`: the reaction to a shadow subscription."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.acknowledging = True
        self.shadow_fault: Literal["none", "refuse", "ignore", "hang up"] = "none"
        self.links = 0
        self.shadow_subscriptions = 0
        """The number of subscriptions to a shadow."""
        self.disconnects = 0
        self.published: list[str] = []
        """The topics of all publishes."""
        self._context = context
        self._writer: asyncio.StreamWriter | None = None
        self._unacknowledged: list[bytes] = []
        self._v5 = False
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    def acknowledge_pending(self) -> None:
        """Acknowledge all pending publishes, and acknowledge new ones from now on."""
        assert self._writer is not None
        self.acknowledging = True
        for packet_id in self._unacknowledged:
            self._writer.write(b"\x40\x02" + packet_id)
        self._unacknowledged.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while self._handle(*await _packet(reader), writer):
                pass
        writer.transport.abort()

    def _handle(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Handle a packet. Returns: whether to keep the connection."""
        if kind == _CONNECT:
            self.links += 1
            self._writer, self._v5 = writer, body[6] == 5
            self._unacknowledged.clear()
            writer.write(b"\x20\x03\x00\x00\x00" if self._v5 else b"\x20\x02\x00\x00")
        elif kind == _SUBSCRIBE:
            return self._subscribe(body, writer)
        elif kind == _PUBLISH:
            end = 2 + int.from_bytes(body[:2])
            self.published.append(body[2:end].decode())
            if self.acknowledging:
                writer.write(b"\x40\x02" + body[end : end + 2])
            else:
                self._unacknowledged.append(body[end : end + 2])
        elif kind == _PING:
            writer.write(b"\xd0\x00")
        elif kind == _DISCONNECT:
            self.disconnects += 1
            return False
        return True

    def _subscribe(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        at, topics = 3 if self._v5 else 2, 0
        while at < len(body):
            at, topics = at + 3 + int.from_bytes(body[at : at + 2]), topics + 1
        code = b"\x01"
        if _SHADOW in body:
            self.shadow_subscriptions += 1
            if self.shadow_fault in {"ignore", "hang up"}:
                return self.shadow_fault == "ignore"
            if self.shadow_fault == "refuse":
                code = b"\x87" if self._v5 else b"\x80"
        answer = body[:2] + (b"\x00" if self._v5 else b"") + code * topics
        writer.write(bytes([0x90, len(answer)]) + answer)
        return True


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0] >> 4
    length, shift = 0, 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length, shift = length | (digit & 0x7F) << shift, shift + 7
        if digit < 0x80:
            return kind, await reader.readexactly(length)
