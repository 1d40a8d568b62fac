"""What the daemon and the camera process say to each other over their socket pair.

A message is a four-byte length (big-endian) and a body. The body of an access unit begins with its flags, 0 or 1
for a keyframe; every other body is a JSON object. Reports and access units go to the daemon, orders to the camera.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edge.core.access_unit import AccessUnit, Quality, StreamFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct("!I")
_UNIT = struct.Struct("!BBQ")
_QUALITIES = (Quality.HD, Quality.SD)


class BadWire(ValueError):
    """The other end does not keep to this protocol."""


@dataclass(frozen=True, slots=True)
class Start:
    """Open the source; answered by Opened or Failed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Release the source; answered by Closed, open or not."""


@dataclass(frozen=True, slots=True)
class MakeKeyframe:
    """Make the next picture a keyframe."""

    quality: Quality


@dataclass(frozen=True, slots=True)
class SetBitrate:
    """Aim at this bitrate from now on."""

    quality: Quality
    bitrate_bps: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is up and reads orders."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The source runs; access units follow, a keyframe first."""

    format: StreamFormat


@dataclass(frozen=True, slots=True)
class Closed:
    """The source is released; no access unit follows."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The source could not be opened, or broke; it is released. No access unit follows."""

    message: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many access units more were dropped, because the daemon was slow to read."""

    count: int


Order: TypeAlias = Start | Stop | MakeKeyframe | SetBitrate
Report: TypeAlias = Ready | Opened | Closed | Failed | Dropped

_KINDS = {
    kind.__name__: kind for kind in (Start, Stop, MakeKeyframe, SetBitrate, Ready, Opened, Closed, Failed, Dropped)
}


def encode_unit(unit: AccessUnit) -> bytes:
    """The whole message of an access unit, length included.

    Raises: BadWire: over the limit.
    """
    return _framed(_UNIT.pack(unit.keyframe, _QUALITIES.index(unit.quality), unit.captured_ns) + unit.payload)


def encode(message: Order | Report) -> bytes:
    """The whole message of an order or a report, length included.

    Raises: BadWire: over the limit.
    """
    return _framed(json.dumps({"kind": type(message).__name__, **asdict(message)}).encode())


def decode(body: bytes) -> AccessUnit | Order | Report:
    """What a body, without its length, says.

    Raises: BadWire: nothing of this protocol.
    """
    try:
        if body[:1] != b"{":
            keyframe, quality, captured_ns = _UNIT.unpack_from(body)
            return AccessUnit(body[_UNIT.size :], captured_ns, (False, True)[keyframe], _QUALITIES[quality])
        fields: dict[str, Any] = json.loads(body)
        kind = _KINDS[fields.pop("kind")]
        if kind is Opened:
            fields["format"] = StreamFormat(**fields["format"])
        elif "quality" in fields:
            fields["quality"] = Quality(fields["quality"])
        return kind(**fields)
    except (struct.error, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise BadWire(f"a message of {len(body)} bytes that is none of ours") from exc


class Deframer:
    """Cuts a byte stream into bodies. Holds at most one message and what came with it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete with this data; all are to be consumed before the next call.

        Raises: BadWire: a length that is empty or over the limit; the stream cannot be followed any further.
        """
        self._held += data
        begin = 0
        while len(self._held) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held, begin)
            if not 0 < length <= MESSAGE_LIMIT_BYTES:
                raise BadWire(f"a message of {length} bytes")
            end = begin + _LENGTH.size + length
            if end > len(self._held):
                break
            yield bytes(memoryview(self._held)[begin + _LENGTH.size : end])
            begin = end
        del self._held[:begin]


def _framed(body: bytes) -> bytes:
    if len(body) > MESSAGE_LIMIT_BYTES:
        raise BadWire(f"a message of {len(body)} bytes, the limit is {MESSAGE_LIMIT_BYTES}")
    return _LENGTH.pack(len(body)) + body
