"""What the daemon and the camera process say to each other."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.camera.outbox import LIMIT_UNITS, Outbox
from edge.camera.port import Opening
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
    Ready,
    Report,
    SdFailed,
    SetBitrate,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
    decode,
    encode,
    encode_unit,
)
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.camera_controls import Offered

FORMAT = StreamFormat(1280, 720, 30.0, "42c01f", "libx264")
OFFERED = {"gain": Offered(1.0, 16.0), "autofocus": Offered(choices=("manual", "auto"), default="auto")}
OPENING = Opening(FORMAT, (Quality.HD, Quality.SD), OFFERED, {"gain": 2.0, "zoom": {"x": 0.25}})
READY = Ready("synthetic")
qualities = st.sampled_from(Quality)
units = st.builds(AccessUnit, st.binary(max_size=200), st.integers(0, 2**63), st.booleans(), qualities)
spoken = st.one_of(
    st.sampled_from([Start(), Stop(), READY, Closed(), Opened(OPENING)]),
    st.builds(MakeKeyframe, qualities),
    st.builds(SetBitrate, qualities, st.integers(0, 2**40)),
    st.builds(Failed, st.text()),
    st.builds(SdFailed, st.text()),
    st.builds(EncodeSd, st.booleans()),
    st.builds(Start, st.dictionaries(st.text(), st.none() | st.booleans() | st.text())),
    st.builds(SetControls, st.integers(0), st.dictionaries(st.text(), st.none() | st.booleans())),
    st.builds(TakeSnapshot, st.integers(0), st.none() | st.integers(16, 1920), st.integers(1, 95)),
    st.builds(Done, st.integers(0), st.none() | st.text(), st.none() | st.text()),
    st.builds(Dropped, st.integers(0, 2**40)),
)


@given(st.lists(units | spoken, max_size=6), st.integers(1, 64))
def test_what_is_said_is_heard_however_it_is_cut(messages: list[AccessUnit | Order | Report], piece: int) -> None:
    stream = b"".join(encode_unit(m) if isinstance(m, AccessUnit) else encode(m) for m in messages)
    deframer = Deframer()
    heard = [decode(body) for at in range(0, len(stream), piece) for body in deframer.feed(stream[at : at + piece])]
    assert heard == messages


@given(
    st.binary(max_size=64) | st.sampled_from([b'{"kind":"Opened"}', b'{"kind":[]}', b"{}", b'{"kind":"Stop","x":1}'])
)
def test_wild_bodies_are_understood_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadWire):
        decode(body)


@pytest.mark.parametrize("length", [0, MESSAGE_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_it_is_held(length: int) -> None:
    with pytest.raises(BadWire):
        list(Deframer().feed(struct.pack("!I", length)))


def test_an_access_unit_over_the_limit_is_not_sent() -> None:
    with pytest.raises(BadWire):
        encode_unit(AccessUnit(bytes(MESSAGE_LIMIT_BYTES), 0, keyframe=True))


def unit(number: int, *, keyframe: bool = False) -> AccessUnit:
    return AccessUnit(b"\x00\x00\x01\x41", number, keyframe)


def taken(outbox: Outbox) -> object:
    return decode(outbox.take()[4:])


def test_access_units_wait_for_the_report_that_opens() -> None:
    outbox = Outbox()
    outbox.report(READY, opens=False)
    outbox.put(unit(0, keyframe=True))
    assert taken(outbox) == READY
    outbox.report(Opened(OPENING), opens=True)
    assert [taken(outbox), taken(outbox)] == [Opened(OPENING), unit(0, keyframe=True)]


def test_a_report_that_does_not_open_forgets_what_waits() -> None:
    outbox = Outbox()
    outbox.report(Opened(OPENING), opens=True)
    outbox.put(unit(0, keyframe=True))
    outbox.report(Closed(), opens=False)
    outbox.report(Opened(OPENING), opens=True)
    outbox.put(unit(1, keyframe=True))
    assert [taken(outbox) for _ in range(4)] == [Opened(OPENING), Closed(), Opened(OPENING), unit(1, keyframe=True)]


def test_a_full_outbox_drops_to_the_next_keyframe_and_says_how_many() -> None:
    outbox = Outbox()
    outbox.report(Opened(OPENING), opens=True)
    assert all(outbox.put(unit(number, keyframe=number == 0)) for number in range(LIMIT_UNITS))
    assert not outbox.put(unit(90))
    assert not outbox.put(unit(91))
    assert outbox.put(unit(92, keyframe=True))
    assert [taken(outbox) for _ in range(3)] == [Opened(OPENING), Dropped(LIMIT_UNITS + 2), unit(92, keyframe=True)]


def test_a_report_about_something_else_leaves_the_pictures_alone() -> None:
    outbox = Outbox()
    outbox.report(Opened(OPENING), opens=True)
    outbox.put(unit(0, keyframe=True))
    outbox.report(Done(1))
    assert [taken(outbox) for _ in range(3)] == [Opened(OPENING), Done(1), unit(0, keyframe=True)]


def test_each_quality_drops_for_itself() -> None:
    outbox = Outbox()
    outbox.report(Opened(OPENING), opens=True)
    assert outbox.put(unit(0, keyframe=True))
    for number in range(LIMIT_UNITS):
        assert outbox.put(AccessUnit(b"\x00\x00\x01\x41", number, number == 0, Quality.SD))
    assert not outbox.put(AccessUnit(b"\x00\x00\x01\x41", 99, keyframe=False, quality=Quality.SD))
    assert outbox.put(unit(1))
    heard = [taken(outbox) for _ in range(4)]
    assert heard[1:] == [Dropped(LIMIT_UNITS + 1), unit(0, keyframe=True), unit(1)]
