"""What the daemon and the camera process say to each other."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.camera.outbox import LIMIT_UNITS, Outbox
from edge.camera.wire import (
    MESSAGE_LIMIT_BYTES,
    BadWire,
    Closed,
    Deframer,
    Dropped,
    Failed,
    MakeKeyframe,
    Opened,
    Order,
    Ready,
    Report,
    SetBitrate,
    Start,
    Stop,
    decode,
    encode,
    encode_unit,
)
from edge.core.access_unit import AccessUnit, Quality, StreamFormat

FORMAT = StreamFormat(1280, 720, 30.0, "42c01f", "libx264")
qualities = st.sampled_from(Quality)
units = st.builds(AccessUnit, st.binary(max_size=200), st.integers(0, 2**63), st.booleans(), qualities)
spoken = st.one_of(
    st.sampled_from([Start(), Stop(), Ready(), Closed(), Opened(FORMAT)]),
    st.builds(MakeKeyframe, qualities),
    st.builds(SetBitrate, qualities, st.integers(0, 2**40)),
    st.builds(Failed, st.text()),
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
    outbox.report(Ready())
    outbox.put(unit(0, keyframe=True))
    assert taken(outbox) == Ready()
    outbox.report(Opened(FORMAT), opens=True)
    assert [taken(outbox), taken(outbox)] == [Opened(FORMAT), unit(0, keyframe=True)]


def test_a_report_that_does_not_open_forgets_what_waits() -> None:
    outbox = Outbox()
    outbox.report(Opened(FORMAT), opens=True)
    outbox.put(unit(0, keyframe=True))
    outbox.report(Closed())
    outbox.report(Opened(FORMAT), opens=True)
    outbox.put(unit(1, keyframe=True))
    assert [taken(outbox) for _ in range(4)] == [Opened(FORMAT), Closed(), Opened(FORMAT), unit(1, keyframe=True)]


def test_a_full_outbox_drops_to_the_next_keyframe_and_says_how_many() -> None:
    outbox = Outbox()
    outbox.report(Opened(FORMAT), opens=True)
    assert all(outbox.put(unit(number, keyframe=number == 0)) for number in range(LIMIT_UNITS))
    assert not outbox.put(unit(90))
    assert not outbox.put(unit(91))
    assert outbox.put(unit(92, keyframe=True))
    assert [taken(outbox) for _ in range(3)] == [Opened(FORMAT), Dropped(LIMIT_UNITS + 2), unit(92, keyframe=True)]
