"""What the daemon and the camera process say to each other over their socket pair.

A message is a four-byte length (big-endian) and a body. The body of an access unit begins with its flags, 0 or 1
for a keyframe; every other body is a JSON object. Reports and access units go to the daemon, orders to the camera.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from edge.camera.port import Opening
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.camera_controls import Offered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.core.camera_controls import Values

MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct("!I")
_UNIT = struct.Struct("!BBQ")
_QUALITIES = (Quality.HD, Quality.SD)


class BadWire(ValueError):
    """The other end does not keep to this protocol."""


@dataclass(frozen=True, slots=True)
class Start:
    """Open the source, with these controls; answered by Opened or Failed.

    `settings`: the camera's, as on the command line; they may be others than before.
    """

    values: Values = field(default_factory=dict)
    settings: dict[str, Any] | None = None


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
class EncodeSd:
    """Begin or end SD; answered by SdFailed where it cannot begin."""

    on: bool


@dataclass(frozen=True, slots=True)
class SetControls:
    """Set these controls; answered by Done."""

    ticket: int
    values: Values


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Make one JPEG; answered by Done."""

    ticket: int
    width: int | None
    jpeg_quality: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is up and reads orders. `source`: which kind it is."""

    source: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The source runs; access units follow, a keyframe first."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class Closed:
    """The source is released; no access unit follows."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The source could not be opened, or broke; it is released. No access unit follows."""

    message: str


@dataclass(frozen=True, slots=True)
class SdFailed:
    """SD is not encoded; HD goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """An order with a ticket took effect, or why it did not. `base64`: the JPEG that was asked for."""

    ticket: int
    error: str | None = None
    base64: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many access units more were dropped, because the daemon was slow to read."""

    count: int


Order: TypeAlias = Start | Stop | EncodeSd | MakeKeyframe | SetBitrate | SetControls | TakeSnapshot
Report: TypeAlias = Ready | Opened | Closed | Failed | SdFailed | Done | Dropped

_KINDS = {kind.__name__: kind for kind in (*get_args(Order), *get_args(Report))}


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
            fields["opening"] = _opening(**fields["opening"])
        elif "quality" in fields:
            fields["quality"] = Quality(fields["quality"])
        message: Order | Report = kind(**fields)
        return message
    except (struct.error, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise BadWire(f"a message of {len(body)} bytes that is none of ours") from exc


def _opening(
    format: dict[str, Any],  # noqa: A002  the field's name
    qualities: list[str],
    offered: dict[str, dict[str, Any]],
    values: Values,
) -> Opening:
    return Opening(
        StreamFormat(**format),
        tuple(Quality(name) for name in qualities),
        {name: Offered(**{**offer, "choices": tuple(offer["choices"])}) for name, offer in offered.items()},
        values,
    )


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
