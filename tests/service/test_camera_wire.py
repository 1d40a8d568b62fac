"""The protocol between the daemon and the camera process, and what waits to be sent."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.camera.port import Opening
from edge.camera.reports import decode
from edge.camera.send_queue import LIMIT_UNITS, SendQueue
from edge.camera.wire import (
    MESSAGE_LIMIT_BYTES,
    BadWire,
    Closed,
    Deframer,
    Done,
    Dropped,
    EncodeSd,
    Failed,
    MakeKeyframe,
    Opened,
    Order,
    Probe,
    Probed,
    Ready,
    Report,
    SdFailed,
    SetBitrate,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
    decode_order,
    encode,
    encode_unit,
)
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.camera_controls import Offered

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = StreamFormat(1280, 720, 30.0, "42c01f", "libx264")
OFFERED = {"gain": Offered(1.0, 16.0), "autofocus": Offered(choices=("manual", "auto"), default="auto")}
OPENING = Opening(FORMAT, (Quality.HD, Quality.SD), OFFERED, {"gain": 2.0, "zoom": {"x": 0.25}})
READY = Ready("synthetic")
qualities = st.sampled_from(Quality)
units = st.builds(AccessUnit, st.binary(max_size=200), st.integers(0, 2**63), st.booleans(), qualities)
orders = st.one_of(
    st.sampled_from([Probe(), Start(), Stop()]),
    st.builds(MakeKeyframe, qualities),
    st.builds(SetBitrate, qualities, st.integers(0, 2**40)),
    st.builds(EncodeSd, st.booleans(), st.integers(0)),
    st.builds(Start, st.dictionaries(st.text(), st.none() | st.booleans() | st.text())),
    st.builds(SetControls, st.integers(0), st.dictionaries(st.text(), st.none() | st.booleans())),
    st.builds(TakeSnapshot, st.integers(0), st.none() | st.integers(16, 1920), st.integers(1, 95)),
)
reports = st.one_of(
    st.sampled_from([READY, Closed(), Opened(OPENING)]),
    st.builds(Ready, st.text(), st.none() | st.text(), st.none() | st.text()),
    st.builds(Probed, st.none() | st.text(), st.none() | st.text()),
    st.builds(Failed, st.text(), st.text()),
    st.builds(SdFailed, st.text(), st.integers(0)),
    st.builds(Done, st.integers(0), st.none() | st.text(), st.none() | st.text()),
    st.builds(Dropped, st.integers(0, 2**40)),
)
pieces = st.integers(1, 64)


def split(stream: bytes, piece: int) -> Iterator[bytes]:
    deframer = Deframer()
    for at in range(0, len(stream), piece):
        yield from deframer.feed(stream[at : at + piece])


@given(st.lists(orders, max_size=6), pieces)
def test_orders_survive_any_split_of_the_stream(sent: list[Order], piece: int) -> None:
    assert [decode_order(body) for body in split(b"".join(map(encode, sent)), piece)] == sent


@given(st.lists(units | reports, max_size=6), pieces)
def test_reports_survive_any_split_of_the_stream(sent: list[AccessUnit | Report], piece: int) -> None:
    stream = b"".join(encode_unit(each) if isinstance(each, AccessUnit) else encode(each) for each in sent)
    assert [decode(body) for body in split(stream, piece)] == sent


@given(
    st.binary(max_size=64)
    | st.sampled_from([b'{"kind":"Opened"}', b'{"kind":[]}', b"{}", b"[]", b'{"kind":"Stop","x":1}', b"[" * 100_000])
)
def test_invalid_bodies_are_rejected(body: bytes) -> None:
    with contextlib.suppress(BadWire):
        decode(body)
    with pytest.raises(BadWire):
        decode_order(body)


@pytest.mark.parametrize("length", [0, MESSAGE_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_rejected_before_anything_is_buffered(length: int) -> None:
    with pytest.raises(BadWire):
        list(Deframer().feed(struct.pack("!I", length)))


def test_an_access_unit_over_the_limit_is_not_sent() -> None:
    with pytest.raises(BadWire):
        encode_unit(AccessUnit(bytes(MESSAGE_LIMIT_BYTES), 0, keyframe=True))


def unit(number: int, *, keyframe: bool = False) -> AccessUnit:
    return AccessUnit(b"\x00\x00\x01\x41", number, keyframe)


def taken(queue: SendQueue) -> object:
    return decode(queue.take()[4:])


def test_access_units_are_sent_only_after_opened() -> None:
    queue = SendQueue()
    queue.report(READY, opens=False)
    queue.put(unit(0, keyframe=True))
    assert taken(queue) == READY
    queue.report(Opened(OPENING), opens=True)
    assert [taken(queue), taken(queue)] == [Opened(OPENING), unit(0, keyframe=True)]


def test_closed_drops_the_queued_access_units() -> None:
    queue = SendQueue()
    queue.report(Opened(OPENING), opens=True)
    queue.put(unit(0, keyframe=True))
    queue.report(Closed(), opens=False)
    queue.report(Opened(OPENING), opens=True)
    queue.put(unit(1, keyframe=True))
    assert [taken(queue) for _ in range(4)] == [Opened(OPENING), Closed(), Opened(OPENING), unit(1, keyframe=True)]


def test_a_full_queue_drops_to_the_next_keyframe_and_reports_how_many() -> None:
    queue = SendQueue()
    queue.report(Opened(OPENING), opens=True)
    assert all(queue.put(unit(number, keyframe=number == 0)) for number in range(LIMIT_UNITS))
    assert not queue.put(unit(90))
    assert not queue.put(unit(91))
    assert queue.put(unit(92, keyframe=True))
    assert [taken(queue) for _ in range(3)] == [Opened(OPENING), Dropped(LIMIT_UNITS + 2), unit(92, keyframe=True)]


def test_other_reports_leave_the_access_units_queued() -> None:
    queue = SendQueue()
    queue.report(Opened(OPENING), opens=True)
    queue.put(unit(0, keyframe=True))
    queue.report(Done(1))
    assert [taken(queue) for _ in range(3)] == [Opened(OPENING), Done(1), unit(0, keyframe=True)]


def test_each_quality_drops_separately() -> None:
    queue = SendQueue()
    queue.report(Opened(OPENING), opens=True)
    assert queue.put(unit(0, keyframe=True))
    for number in range(LIMIT_UNITS):
        assert queue.put(AccessUnit(b"\x00\x00\x01\x41", number, number == 0, Quality.SD))
    assert not queue.put(AccessUnit(b"\x00\x00\x01\x41", 99, keyframe=False, quality=Quality.SD))
    assert queue.put(unit(1))
    received = [taken(queue) for _ in range(4)]
    assert received[1:] == [Dropped(LIMIT_UNITS + 1), unit(0, keyframe=True), unit(1)]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Done", "ticket": []},
        {"kind": "Dropped", "count": "x"},
        {"kind": "Dropped", "count": float("nan")},
        {"kind": "Ready", "source": 5},
        {"kind": "Opened", "opening": {"format": [640, 480]}},
        {
            "kind": "Opened",
            "opening": {
                "format": {"width": 640, "height": 480, "fps": 0, "profile_level_id": "42c01f", "encoder": "x"},
                "qualities": ["hd"],
                "offered": {},
                "values": {},
            },
        },
    ],
)
def test_reports_with_wrong_types_are_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(BadWire, match="invalid message"):
        decode(json.dumps(fields).encode())
