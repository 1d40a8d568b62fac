"""ICE servers as a browser's list names them, read into what is asked in which order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import SecretStr

    from edge.contract.messages import IceServer

_URL = re.compile(
    r"^(?P<scheme>stuns?|turns?):(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?(\?transport=(?P<transport>udp|tcp))?$",
)
_PORT, _TLS_PORT, _PORT_MAX = 3478, 5349, 65535
# What most networks let through first: UDP, then TCP, then TLS, which looks like any web traffic.
_ORDER = ("turn/udp", "turn/tcp", "turns/tcp")


@dataclass(frozen=True, slots=True)
class StunServer:
    """Where to ask for our own address as others see it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class TurnServer:
    """Where to ask for a relay, and how."""

    host: str
    port: int
    transport: Literal["udp", "tcp"]
    tls: bool
    username: str
    password: SecretStr


@dataclass(frozen=True, slots=True)
class IceServers:
    """What to ask: every STUN server, and TURN servers in the order of trying, the first that allocates is kept."""

    stun: tuple[StunServer, ...] = ()
    turn: tuple[TurnServer, ...] = ()


def read_ice_servers(servers: Iterable[IceServer], allowed_hosts: Sequence[str]) -> IceServers:
    """Read a list from a message, whose hosts must all be on the settings' allow-list.

    Raises: Rejected: `bad_message`, `forbidden` (the message names the host, never the credential).
    """
    stun: list[StunServer] = []
    turn: list[tuple[int, TurnServer]] = []
    for server in servers:
        for url in [server.urls] if isinstance(server.urls, str) else server.urls:
            match = _URL.fullmatch(url)
            if match is None:
                raise Rejected(Code.BAD_MESSAGE, "ice_servers: a URL is no stun: or turn: URL")
            host, scheme = match["host"].strip("[]"), match["scheme"]
            tls = scheme.endswith("s")
            port = int(match["port"] or (_TLS_PORT if tls else _PORT))
            if not 0 < port <= _PORT_MAX:
                raise Rejected(Code.BAD_MESSAGE, "ice_servers: a port is out of range")
            if host not in allowed_hosts:
                raise Rejected(Code.FORBIDDEN, f"ice_servers: {host} is not in this device's ice.allowed_hosts")
            if scheme.startswith("stun"):
                # STUN over TLS gains nothing here: the plain form of such a server answers the same question.
                stun.append(StunServer(host, port if not tls else _PORT))
                continue
            if tls and match["transport"] == "udp":
                continue  # TURN over DTLS: nothing here speaks it
            if server.username is None or server.credential is None:
                raise Rejected(Code.BAD_MESSAGE, "ice_servers: a turn: URL without username and credential")
            transport: Literal["udp", "tcp"] = "tcp" if tls or match["transport"] == "tcp" else "udp"
            entry = TurnServer(host, port, transport, tls, server.username, server.credential)
            turn.append((_ORDER.index(f"{scheme}/{transport}"), entry))
    turn.sort(key=lambda item: item[0])
    return IceServers(tuple(dict.fromkeys(stun)), tuple(entry for _, entry in turn))
