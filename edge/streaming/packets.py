"""Access units as packets, made once and kept once for all viewers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from edge.core.packetizer import packetize

if TYPE_CHECKING:
    from edge.core.access_unit import AccessUnit, Quality

_MARKER = 0x80
_RUN_SEGMENTS = 20
"""Packets for one system call: the kernel takes 64, a Wi-Fi link about as many in one turn."""


class Packet(NamedTuple):
    """Where a packet lies in a sheet: with its header, without the tag that protection adds."""

    offset: int
    plain_bytes: int
    marker: int


class Run(NamedTuple):
    """Packets that leave in one system call: all of one size, but for a shorter last one."""

    first: int
    number: int
    segment_bytes: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """All packets of an access unit, one behind the other, with gaps for header and tag; to be copied and filled in."""

    data: bytes
    packets: tuple[Packet, ...]
    runs: tuple[Run, ...]


@dataclass(slots=True)
class Packets:
    """One access unit's payloads, and the sheets that viewers asked for: those with the same gaps share one."""

    unit: AccessUnit
    payloads: list[bytes]
    payload_bytes: int
    _sheets: dict[tuple[int, int], Sheet] = field(default_factory=dict)

    def sheet(self, header_bytes: int, tag_bytes: int) -> Sheet:
        gaps = header_bytes, tag_bytes
        sheet = self._sheets.get(gaps)
        if sheet is None:
            sheet = self._sheets[gaps] = self._laid_out(header_bytes, tag_bytes)
        return sheet

    def forget_sheets(self) -> None:
        """A newer access unit is on its way: for resending, the payloads are enough."""
        self._sheets.clear()

    def _laid_out(self, header_bytes: int, tag_bytes: int) -> Sheet:
        header, tag = bytes(header_bytes), bytes(tag_bytes)
        packets: list[Packet] = []
        runs: list[Run] = []
        offset = 0
        for number, payload in enumerate(self.payloads):
            plain_bytes = header_bytes + len(payload)
            packets.append(Packet(offset, plain_bytes, _MARKER if number == len(self.payloads) - 1 else 0))
            _add(runs, number, plain_bytes + tag_bytes, packets, tag_bytes)
            offset += plain_bytes + tag_bytes
        data = b"".join(part for payload in self.payloads for part in (header, payload, tag))
        return Sheet(data, tuple(packets), tuple(runs))


def _add(runs: list[Run], number: int, size: int, packets: list[Packet], tag_bytes: int) -> None:
    if runs:
        first, count, segment = runs[-1]
        previous = packets[number - 1].plain_bytes + tag_bytes
        # A shorter packet ends its run.
        if count < _RUN_SEGMENTS and size <= segment and previous == segment:
            runs[-1] = Run(first, count + 1, segment)
            return
    runs.append(Run(number, 1, size))


class Packetizer:
    """Makes `Packets`, once for each access unit, however many viewers ask. `limit_bytes`: of a payload."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._latest: dict[Quality, Packets] = {}

    def packets(self, unit: AccessUnit) -> Packets:
        """Raises: BadBitstream, ValueError: the access unit cannot be sent."""
        latest = self._latest.get(unit.quality)
        if latest is not None and latest.unit is unit:
            return latest
        if latest is not None:
            latest.forget_sheets()
        payloads = packetize(unit.payload, self._limit_bytes)
        made = self._latest[unit.quality] = Packets(unit, payloads, sum(map(len, payloads)))
        return made
