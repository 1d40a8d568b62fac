"""ICE candidates as text (RFC 8839, 5.1)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from edge.contract.codes import Code
from edge.errors import Rejected

_LINE = re.compile(
    r"^(?:a=)?(?:candidate:)?(?P<foundation>[A-Za-z0-9+/.:_-]{1,64}) "
    r"(?P<component>\d{1,3}) "
    r"(?P<transport>[A-Za-z]{1,16}) (?P<priority>\d{1,10}) "
    r"(?P<host>[^ ]{1,255}) (?P<port>\d{1,5}) typ (?P<type>host|srflx|prflx|relay)\b",
    re.ASCII,
)
_PORT_MAX = 65535
_PRIORITY_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A UDP candidate of the first component, with an address and not a name."""

    foundation: str
    priority: int
    host: str
    port: int
    type: str


def read_candidate(text: str) -> Candidate | None:
    """Read one candidate line.

    None: well formed but of no use here: TCP, another component, or a `.local` name, which is not resolved because
    the wait for it would cost more than learning the address from the browser's own check.
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
    if "%" in host:  # an interface of the other machine (RFC 4007, 11), and any text could follow the sign
        raise Rejected(Code.BAD_MESSAGE, "the candidate's address has a zone")
    if not 0 < port <= _PORT_MAX or priority > _PRIORITY_MAX:
        raise Rejected(Code.BAD_MESSAGE, "the candidate's port or priority is out of range")
    return Candidate(match["foundation"], priority, str(address), port, match["type"])
