"""STUN messages that no honest client sends, and a STUN and TURN server that answers what a test says."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aioice import stun
from aioice.turn import make_integrity_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

REALM, NONCE = "test", b"nonce"


def message(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    """A STUN message with this type and body. `length`: a wrong one."""
    size = len(body) if length is None else length
    return struct.pack("!HHI12s", kind, size, stun.COOKIE, b"transaction!") + body


def attribute(kind: int, value: bytes, *, length: int | None = None) -> bytes:
    """An attribute, padded. `length`: a wrong one."""
    size = len(value) if length is None else length
    return struct.pack("!HH", kind, size) + value + bytes(-len(value) % 4)


class IceServerRig(asyncio.DatagramProtocol):
    """Answers STUN binding requests and TURN allocations of the user `u` with the password `p`.

    `mapped`, `relayed`: the addresses in its answers. `disturb`: makes a datagram that it sends before each answer.
    `requests`: the methods that were requested.
    """

    def __init__(self) -> None:
        self.mapped = self.relayed = ("192.0.2.1", 4000)
        self.disturb: Callable[[stun.Message], bytes] | None = None
        self.requests: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.host, self.port = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        request = stun.parse_message(data)
        self.requests.append(request.message_method.name)
        if self.disturb is not None:
            self._transport.sendto(self.disturb(request), addr)
        allocates = request.message_method is stun.Method.ALLOCATE
        denied = request.message_method is not stun.Method.BINDING and "MESSAGE-INTEGRITY" not in request.attributes
        answer = stun.Message(
            request.message_method, stun.Class.ERROR if denied else stun.Class.RESPONSE, request.transaction_id
        )
        if denied:
            answer.attributes.update({"ERROR-CODE": (401, "Unauthorized"), "REALM": REALM, "NONCE": NONCE})
        else:
            answer.attributes.update({"XOR-MAPPED-ADDRESS": self.mapped, "LIFETIME": 600})
            if allocates:
                answer.attributes["XOR-RELAYED-ADDRESS"] = self.relayed
            if request.message_method is not stun.Method.BINDING:
                answer.add_message_integrity(make_integrity_key("u", REALM, "p"))
        self._transport.sendto(bytes(answer), addr)


@asynccontextmanager
async def ice_server(host: str) -> AsyncIterator[IceServerRig]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(IceServerRig, local_addr=(host, 0))
    try:
        yield server
    finally:
        transport.close()
