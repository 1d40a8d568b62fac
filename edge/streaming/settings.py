"""The settings of ICE and RTP."""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated, ClassVar

from pydantic import Field

from edge.contract.section import Rule, Section

_HOST = re.compile(r"(?:\.[A-Za-z0-9-]+\.)?[A-Za-z0-9][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+")
_PORTS_MIN = 10

Port = Annotated[int, Field(ge=1024, le=65535)]


class InterfaceSettings(Section):
    """`[ice.interfaces]`: by name, where `*` is any text. Applies to UDP between device and viewer, not to relays."""

    allow: list[str] = Field(
        default_factory=lambda: ["*"], description="Network interfaces that viewers may be reached over."
    )
    deny: list[str] = Field(
        default_factory=lambda: ["docker*", "veth*", "br-*"],
        description="Exceptions from allow. By default, the interfaces of containers.",
    )

    def allows(self, name: str) -> bool:
        """Whether the interface may be used. `deny` wins."""
        return _matches(name, self.allow) and not _matches(name, self.deny)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _hosts_are_hosts(ice: IceSettings) -> tuple[str, str] | None:
    bad = next((host for host in ice.allowed_hosts if not _HOST.fullmatch(host)), None)
    if bad is None:
        return None
    return "allowed_hosts", f"{bad!r} is neither a host nor a domain of two labels with a leading dot"


def _ports_are_a_range(ice: IceSettings) -> tuple[str, str] | None:
    lowest, highest = ice.udp_port_min, ice.udp_port_max
    if (lowest is None) != (highest is None):
        return "udp_port_min" if lowest is None else "udp_port_max", "missing; a range needs both ends"
    if lowest is not None and highest is not None and highest - lowest + 1 < _PORTS_MIN:
        return "udp_port_max", f"the range has fewer than {_PORTS_MIN} ports"
    return None


class IceSettings(Section):
    """`[ice]`: STUN and TURN servers, and the device's own addresses and ports."""

    rules: ClassVar[tuple[Rule, ...]] = (_hosts_are_hosts, _ports_are_a_range)

    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="Hosts of the STUN and TURN servers that an offer may name. .example.org allows that domain and "
        "all below it. Other servers are left out, and an offer that names only such servers is rejected.",
    )
    allowed_ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(
        default_factory=list,
        description="Further ports of these servers. 80, 443, 3478 and 5349 are always allowed.",
    )
    gather_timeout_s: float = Field(
        default=0.8,
        gt=0,
        le=5,
        description="How long an answer without trickle waits for candidates from STUN servers.",
    )
    allow_loopback: bool = Field(
        default=False,
        description="Connect to viewers and relays at loopback addresses of this machine, in demonstrations and tests.",
    )
    relay_timeout_s: float = Field(
        default=2.0,
        gt=0,
        le=5,
        description="How long an answer without trickle waits for a relay, where the offer names a TURN server.",
    )
    udp_port_min: Annotated[
        Port | None,
        Field(
            description="Lowest UDP port between device and viewer. Each session uses one on each address. "
            "None: any port. Connections to TURN servers use any port."
        ),
    ] = None
    udp_port_max: Annotated[Port | None, Field(description="Highest UDP port between device and viewer.")] = None
    interfaces: InterfaceSettings = InterfaceSettings()

    @property
    def udp_ports(self) -> range | None:
        """The ports of host candidates. None: any."""
        if self.udp_port_min is None or self.udp_port_max is None:
            return None
        return range(self.udp_port_min, self.udp_port_max + 1)


class RtpSettings(Section):
    """`[rtp]`."""

    packet_bytes: Annotated[
        int,
        Field(ge=500, le=1400, description="Largest size of a packet in bytes, including SRTP and header extensions."),
    ] = 1200
    playout_delay_ms: Annotated[
        int, Field(ge=0, le=2000, description="How long a browser may delay frames to play them evenly. 0: no delay.")
    ] = 0
