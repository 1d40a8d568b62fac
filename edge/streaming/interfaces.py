"""Choose the addresses and ports of this device's UDP sockets."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import ifaddr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.streaming.settings import IceSettings

_TRIES = 100
_RECEIVE_BUFFER_BYTES = 262_144  # as aioice
_LOOPBACK = ("127.0.0.1", "::1")


def open_sockets(settings: IceSettings) -> Iterator[socket.socket]:
    """Open a UDP socket on each usable address, one after the other. Addresses without a free port are left out.

    Usable: not loopback, not an IPv6 link-local address, and of an interface that `ice.interfaces` allows.
    """
    bound = (_bind(address, settings.udp_ports) for address in usable_addresses(settings))
    return (sock for sock in bound if sock is not None)


def usable_addresses(settings: IceSettings) -> list[str]:
    """The addresses for host candidates."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            # An address may have a label, such as eth0:1.
            if not settings.interfaces.allows(ip.nice_name.partition(":")[0]):
                continue
            if isinstance(ip.ip, str):
                address, scope = ip.ip, 0
            else:
                address, _, scope = ip.ip
            if address not in _LOOPBACK and not scope:
                found.append(address)
    return found


def _bind(address: str, ports: range | None) -> socket.socket | None:
    """None: the address is gone, or no port is free."""
    tries = [0] if ports is None else random.sample(ports, min(len(ports), _TRIES))
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    for port in tries:
        try:
            sock.bind((address, port))
        except OSError:
            continue
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        return sock
    sock.close()
    return None
