"""Parse ICE candidates (RFC 8839, 5.1)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_LINE = re.compile(
    r"^(?:a=)?(?:candidate:)?(?P<foundation>[A-Za-z0-9+/.:_-]{1,64}) "
    r"(?P<component>\d{1,3}) "
    r"(?P<transport>[A-Za-z]{1,16}) (?P<priority>\d{1,10}) "
    r"(?P<host>[^ ]{1,255}) (?P<port>\d{1,5}) typ (?P<type>host|srflx|prflx|relay)\b",
    re.ASCII,
)
_LOCAL = re.compile(r"[A-Za-z0-9-]{1,63}\.local", re.IGNORECASE | re.ASCII)
LOCAL_NAMES_LIMIT = 4
"""Names that are resolved for an offer, and as many for the candidates that follow it."""
_PORT_MAX = 65535
# Unspecified, broadcast, IPv4-mapped. The kernel itself refuses broadcast addresses of its networks.
_NO_MACHINE = tuple(map(ipaddress.ip_network, ("0.0.0.0/8", "255.255.255.255/32", "::/128", "::ffff:0:0/96")))
_PRIORITY_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A UDP candidate of the first component with an IP address."""

    foundation: str
    priority: int
    host: str
    port: int
    type: str

    @property
    def address(self) -> IPv4Address | IPv6Address:
        return ipaddress.ip_address(self.host)


@dataclass(frozen=True, slots=True)
class LocalName:
    """A candidate with a `.local` name (multicast DNS) in place of the address, which browsers hide."""

    foundation: str
    priority: int
    name: str
    port: int
    type: str

    def at(self, address: str) -> Candidate | None:
        """The candidate with the address of the name. None: the address cannot be used."""
        try:
            return read_candidate(f"{self.foundation} 1 udp {self.priority} {address} {self.port} typ {self.type}")
        except Rejected:
            return None


def is_one_machine(address: IPv4Address | IPv6Address, port: int) -> bool:
    """Whether this is the address of one machine (not multicast, broadcast, unspecified), and the port is not 0."""
    return port != 0 and not address.is_multicast and not any(address in network for network in _NO_MACHINE)


def read_local_name(text: str) -> LocalName | None:
    """Read a candidate line with a `.local` name. None: any other line."""
    match = _LINE.match(text)
    if match is None or match["transport"].lower() != "udp" or match["component"] != "1":
        return None
    port, priority = int(match["port"]), int(match["priority"])
    if not _LOCAL.fullmatch(match["host"]) or not 0 < port <= _PORT_MAX or priority > _PRIORITY_MAX:
        return None
    return LocalName(match["foundation"], priority, match["host"].lower(), port, match["type"])


def read_candidate(text: str) -> Candidate | None:
    """Parse and check one candidate line.

    Returns None for a valid candidate that is not used: TCP, another component, an address that is not that of one
    machine (multicast, broadcast, unspecified), or a `.local` name (`read_local_name`).
    Raises: Rejected: `bad_message`.
    """
    match = _LINE.match(text)
    if match is None:
        raise Rejected(Code.BAD_MESSAGE, "the candidate is malformed")
    host, port, priority = match["host"], int(match["port"]), int(match["priority"])
    if match["transport"].lower() != "udp" or match["component"] != "1" or host.lower().endswith(".local"):
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise Rejected(Code.BAD_MESSAGE, "the candidate's address is not an IP address") from None
    if "%" in host:  # names an interface of the other machine (RFC 4007, 11); arbitrary text could follow
        raise Rejected(Code.BAD_MESSAGE, "the candidate's address has a zone")
    if not 0 < port <= _PORT_MAX or priority > _PRIORITY_MAX:
        raise Rejected(Code.BAD_MESSAGE, "the candidate's port or priority is out of range")
    if not is_one_machine(address, port):
        return None
    return Candidate(match["foundation"], priority, str(address), port, match["type"])
