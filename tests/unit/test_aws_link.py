"""How the link by AWS's client finds its socket, which the client does not show."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from edge.mqtt.aws_link import connections, disable_delay


def no_delay(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_only_the_new_connection_to_a_port_is_changed() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = listener.getsockname()
        older = stack.enter_context(socket.create_connection(address))
        others = connections(address[1])
        assert others == {(older.getsockname(), older.getpeername()): older.fileno()}
        mine = stack.enter_context(socket.create_connection(address))
        disable_delay(address[1], others.keys())
        assert (no_delay(mine), no_delay(older), no_delay(listener)) == (True, False, False)
