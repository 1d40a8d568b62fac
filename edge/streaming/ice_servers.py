"""Parse the list of ICE servers of an offer, and keep those that the settings allow."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge.contract.codes import Code
from edge.contract.messages import IceServerLeftOut
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import SecretStr

    from edge.contract.messages import IceServer, LeftOutReason

_URL = re.compile(
    r"^(?P<scheme>stuns?|turns?):(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?(\?transport=(?P<transport>udp|tcp))?$",
    re.ASCII,
)
_PORT, _TLS_PORT, _PORT_MAX = 3478, 5349, 65535
USUAL_PORTS = (80, 443, _PORT, _TLS_PORT)
"""The ports of STUN and TURN servers that an offer may always name: others could be services of this network."""
_SETTINGS = {"not_allowed": "ice.allowed_hosts", "port_not_allowed": "ice.allowed_ports"}
_LIMIT = 4
"""Most servers of one kind that an offer may use: all are queried at once."""


@dataclass(frozen=True, slots=True)
class StunServer:
    """A STUN server, which returns this device's public address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"STUN {self.host}"

    @property
    def kind(self) -> str:
        return "stun"


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A TURN server, which provides a relay."""

    host: str
    port: int
    transport: Literal["udp", "tcp"]
    tls: bool
    username: str
    password: SecretStr

    def __str__(self) -> str:
        return f"TURN {self.host} over {self.kind}"

    @property
    def kind(self) -> Literal["udp", "tcp", "tls"]:
        return "tls" if self.tls else self.transport

    @property
    def rank(self) -> int:
        """0 is best. TCP and TLS pass more firewalls than UDP, but are slower."""
        return ("udp", "tcp", "tls").index(self.kind)


@dataclass(frozen=True, slots=True)
class IceServers:
    """The servers to query."""

    stun: tuple[StunServer, ...] = ()
    turn: tuple[TurnServer, ...] = ()
    left_out: tuple[IceServerLeftOut, ...] = ()
    """The URLs that are not used, for the answer and the log. Without credentials."""


class _Unusable(Exception):
    """A URL is left out. `server`: its host where that is known."""

    def __init__(self, reason: LeftOutReason, server: str) -> None:
        self.reason: LeftOutReason = reason
        self.server = server


def read_ice_servers(
    servers: Iterable[IceServer], allowed_hosts: Sequence[str], allowed_ports: Sequence[int] = ()
) -> IceServers:
    """Parse and check the servers of a message. `allowed_hosts`, `allowed_ports`: the settings `ice.allowed_*`.

    A URL that is malformed, not allowed or not supported is left out.
    Raises: Rejected: no URL is left of those that were named. `forbidden`, if a host or port is not
    allowed, else `bad_message`. The message names a host, never a credential.
    """
    found: dict[StunServer | TurnServer, None] = {}
    left_out: list[IceServerLeftOut] = []
    kinds: Counter[str] = Counter()
    for index, server in enumerate(servers):
        for number, url in enumerate([server.urls] if isinstance(server.urls, str) else server.urls):
            try:
                where = f"ice_servers.{index}.urls.{number}"
                one = _read(server, url, where, hosts=allowed_hosts, ports=allowed_ports)
                if one not in found and kinds[one.kind] == _LIMIT:
                    raise _Unusable("too_many", one.host)
            except _Unusable as exc:
                left_out.append(IceServerLeftOut(server=exc.server, reason=exc.reason))
                continue
            kinds[one.kind] += one not in found
            found[one] = None
    if left_out and not found:
        raise _nothing_left(left_out)
    stun = tuple(one for one in found if isinstance(one, StunServer))
    turn = tuple(sorted((one for one in found if isinstance(one, TurnServer)), key=lambda one: one.rank))
    return IceServers(stun, turn, tuple(left_out))


def _read(
    server: IceServer, url: str, where: str, *, hosts: Sequence[str], ports: Sequence[int]
) -> StunServer | TurnServer:
    match = _URL.fullmatch(url)
    if match is None:
        # Its text is not repeated: it may contain a password.
        raise _Unusable("malformed", where)
    host, scheme = match["host"].strip("[]"), match["scheme"]
    tls = scheme.endswith("s")
    port = int(match["port"] or (_TLS_PORT if tls else _PORT))
    if not 0 < port <= _PORT_MAX:
        raise _Unusable("malformed", where)
    if not any(_allows(allowed, host) for allowed in hosts):
        raise _Unusable("not_allowed", host)
    if port not in USUAL_PORTS and port not in ports:
        raise _Unusable("port_not_allowed", f"{host}:{port}")
    if scheme.startswith("stun"):
        # The plain form of the server returns the same address as STUN over TLS.
        return StunServer(host, port if not tls else _PORT)
    if tls and match["transport"] == "udp":
        raise _Unusable("unsupported", host)  # TURN over DTLS
    if server.username is None or server.credential is None:
        raise _Unusable("malformed", where)
    transport: Literal["udp", "tcp"] = "tcp" if tls or match["transport"] == "tcp" else "udp"
    return TurnServer(host, port, transport, tls, server.username, server.credential)


def _allows(allowed: str, host: str) -> bool:
    """Whether an entry of `ice.allowed_hosts` allows a host. One with a leading dot allows the domain and all below."""
    allowed, host = _normal(allowed), _normal(host)
    if allowed.startswith("."):
        return host == allowed[1:] or host.endswith(allowed)
    return host == allowed


def _normal(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().removesuffix(".")


def _nothing_left(left_out: Sequence[IceServerLeftOut]) -> Rejected:
    for one in left_out:
        if one.reason in _SETTINGS:
            said = f"{one.server} is not in this device's {_SETTINGS[one.reason]}"
            return Rejected(Code.FORBIDDEN, f"ice_servers: {said}")
    one = left_out[0]
    return Rejected(Code.BAD_MESSAGE, f"ice_servers: no server can be used: {one.server} is {one.reason}")
