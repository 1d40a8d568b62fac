"""Resolve `.local` names by multicast DNS. Source: RFC 6762."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import dns.exception
import dns.message
from aioice.mdns import MDNS_PORT, MDnsProtocol

_TIMEOUT_S = 2.0
_ANSWER_BYTES = 512
"""A browser's answer has about 150 bytes. A message of 50 kB would take the event loop for a third of a second."""
_PARSED = 16
"""The name that is asked for can be read by everybody on the network, and be sent back in any number of messages."""


async def resolve_local(name: str) -> str | None:
    """The address of a name on this network. None: there is no answer in time, or the socket for it cannot be opened.

    The port is open only meanwhile: a busy network sends many messages.
    """
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None
    try:
        # Shared with the system's own responder, such as avahi.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", MDNS_PORT))
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_datagram_endpoint(lambda: _Protocol(name), sock=sock)
    except OSError:
        sock.close()
        return None
    try:
        return await protocol.resolve(name, timeout=_TIMEOUT_S)
    finally:
        protocol.transport.close()


class _Protocol(MDnsProtocol):
    """Reads only a few messages, all of which may be answers for this name.

    Reads answers of Chromium, too: their NSEC records are compressed, for which dnspython rejects the message.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._label = name.partition(".")[0].lower().encode()
        self._left = _PARSED

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        datagram = cast("bytes", data)
        if len(datagram) > _ANSWER_BYTES or self._label not in datagram.lower() or self._left <= 0:
            return
        self._left -= 1
        try:
            message = dns.message.from_wire(datagram, continue_on_error=True)
            answers = dns.message.QueryMessage(id=0)
            answers.flags = message.flags
            # The address of the other IP version is an additional record (RFC 6762, 6.2).
            answers.answer = message.answer + message.additional
            super().datagram_received(answers.to_wire(), addr)
        except (dns.exception.DNSException, ValueError):
            return
