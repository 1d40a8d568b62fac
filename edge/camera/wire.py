"""The protocol between the daemon and the camera process, over a socket pair.

A message is a four-byte length (big-endian) and a body. The body of an access unit starts with a byte that is 1 for a
keyframe, else 0. Every other body is a JSON object. The daemon sends orders. The camera process sends reports and
access units.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

# reports.py reads the annotations of the reports at run time.
from edge.camera.port import Opening  # noqa: TC001
from edge.core.access_unit import AccessUnit, Quality

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.core.camera_controls import ControlValues

MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct("!I")
_UNIT = struct.Struct("!BBQ")
_QUALITIES = (Quality.HD, Quality.SD)


class BadWire(ValueError):
    """The message violates this protocol."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Check whether the camera is there, without opening it; answered by Probed."""


@dataclass(frozen=True, slots=True)
class Start:
    """Open the source, with these controls; answered by Opened or Failed.

    `settings`: the camera's settings, as on the command line. They may have changed since.
    """

    values: ControlValues = field(default_factory=dict)
    settings: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the source; always answered by Closed."""


@dataclass(frozen=True, slots=True)
class MakeKeyframe:
    """Encode the next picture as a keyframe."""

    quality: Quality


@dataclass(frozen=True, slots=True)
class SetBitrate:
    """Aim at this bitrate from now on."""

    quality: Quality
    bitrate_bps: int


@dataclass(frozen=True, slots=True)
class EncodeSd:
    """Start or stop SD. SdFailed with the same number: it did not start, or failed later."""

    on: bool
    number: int = 0


@dataclass(frozen=True, slots=True)
class SetControls:
    """Set these controls; answered by Done."""

    ticket: int
    values: ControlValues


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Make one JPEG; answered by Done."""

    ticket: int
    width: int | None
    jpeg_quality: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is up, has probed for the camera, and reads orders. `source`: which kind it is.

    `missing` and `detail` as in Probed.
    """

    source: str
    missing: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """None: the camera is there. Else why not, for viewers (`missing`) and for technicians (`detail`)."""

    missing: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The source is open. Access units follow, a keyframe first."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class Closed:
    """The source is closed. No access unit follows."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The source could not be opened, or failed; it is closed. No access unit follows.

    `message` is for viewers, `detail` for technicians.
    """

    message: str
    detail: str


@dataclass(frozen=True, slots=True)
class SdFailed:
    """The SD encode that the order of this number started has failed; HD goes on."""

    message: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The order with this ticket took effect; `error`: why it did not. `base64`: the requested JPEG."""

    ticket: int
    error: str | None = None
    base64: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """This many more access units were dropped because the daemon was slow to read."""

    count: int


Order: TypeAlias = Probe | Start | Stop | EncodeSd | MakeKeyframe | SetBitrate | SetControls | TakeSnapshot
Report: TypeAlias = Ready | Probed | Opened | Closed | Failed | SdFailed | Done | Dropped

_ORDERS = {kind.__name__: kind for kind in get_args(Order)}


def encode_unit(unit: AccessUnit) -> bytes:
    """Encode an access unit as a message with its length.

    Raises: BadWire: the message is too long.
    """
    return _framed(_UNIT.pack(unit.keyframe, _QUALITIES.index(unit.quality), unit.captured_ns) + unit.payload)


def encode(message: Order | Report) -> bytes:
    """Encode an order or a report as a message with its length.

    Raises: BadWire: the message is too long.
    """
    return _framed(json.dumps({"kind": type(message).__name__, **asdict(message)}).encode())


def decode_order(body: bytes) -> Order:
    """Decode the body of an order. The daemon has checked the types of its fields.

    Raises: BadWire: the body is invalid.
    """
    try:
        fields = json.loads(body)
        kind = _ORDERS[fields.pop("kind")]
        if "quality" in fields:
            fields["quality"] = Quality(fields["quality"])
        order: Order = kind(**fields)
    except DECODE_ERRORS as exc:
        raise invalid(body, exc) from exc
    return order


def decode_unit(body: bytes) -> AccessUnit:
    """Decode the body of an access unit.

    Raises: BadWire: the body is invalid.
    """
    try:
        keyframe, quality, captured_ns = _UNIT.unpack_from(body)
        return AccessUnit(body[_UNIT.size :], captured_ns, (False, True)[keyframe], _QUALITIES[quality])
    except DECODE_ERRORS as exc:
        raise invalid(body, exc) from exc


DECODE_ERRORS = (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What decoding of any bytes may raise."""


def invalid(body: bytes, exc: Exception) -> BadWire:
    """Make the error that says why a body cannot be decoded."""
    cause = " ".join(str(exc).split())[:200]
    return BadWire(f"invalid message of {len(body)} bytes: {type(exc).__name__}: {cause}")


class Deframer:
    """Splits a byte stream into bodies. Holds at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete after this data. Consume all of them before the next call.

        Raises: BadWire: a length is zero or too large; the stream cannot be decoded any further.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if not 0 < length <= MESSAGE_LIMIT_BYTES:
                raise BadWire(f"invalid message length of {length} bytes (limit: {MESSAGE_LIMIT_BYTES})")
            end = start + _LENGTH.size + length
            if end > len(self._buffer):
                break
            yield bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def _framed(body: bytes) -> bytes:
    if len(body) > MESSAGE_LIMIT_BYTES:
        raise BadWire(f"message of {len(body)} bytes is too long (limit: {MESSAGE_LIMIT_BYTES})")
    return _LENGTH.pack(len(body)) + body
