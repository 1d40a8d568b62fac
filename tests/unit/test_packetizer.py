"""Access units as RTP payloads (RFC 6184), put together again by a reader of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.annexb import join_annexb
from edge.core.packetizer import packetize

SPS, PPS, AUD = b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80", b"\x09\xf0"


def read(payloads: list[bytes]) -> list[bytes]:
    """The NAL units that a receiver makes of these."""
    nals: list[bytes] = []
    fragments: bytes | None = None
    for payload in payloads:
        kind = payload[0] & 0x1F
        if kind == 24:
            at = 1
            while at < len(payload):
                size = int.from_bytes(payload[at : at + 2], "big")
                nals.append(payload[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == 28:
            if payload[1] & 0x80:
                assert fragments is None
                fragments = bytes([payload[0] & 0xE0 | payload[1] & 0x1F])
            assert fragments is not None
            fragments += payload[2:]
            if payload[1] & 0x40:
                nals.append(fragments)
                fragments = None
        else:
            nals.append(payload)
    assert fragments is None
    return nals


# A NAL unit never ends in a zero byte, nor holds a start code.
nal_units = st.builds(
    lambda kind, body: bytes([kind]) + body.replace(b"\x00", b"\x01") + b"\x80",
    st.sampled_from([0x67, 0x68, 0x65, 0x41, 0x06]),
    st.binary(max_size=5000),
)


@given(st.lists(nal_units, min_size=1, max_size=8), st.integers(20, 1200))
def test_a_receiver_gets_what_was_sent_in_packets_within_the_limit(nals: list[bytes], limit: int) -> None:
    payloads = packetize(join_annexb(nals), limit)
    assert all(0 < len(payload) <= limit for payload in payloads)
    assert read(payloads) == nals


@given(st.integers(1, 60_000), st.integers(100, 1200))
def test_fragments_are_of_one_size_but_for_the_last(size: int, limit: int) -> None:
    payloads = packetize(join_annexb([b"\x65" + b"\x55" * size]), limit)
    sizes = [len(payload) for payload in payloads]
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]
    # Not one more than there have to be.
    assert len(payloads) == 1 or len(payloads) == -(-size // (limit - 2))


def test_parameter_sets_travel_together_and_the_delimiter_stays_at_home() -> None:
    first, *rest = packetize(join_annexb([AUD, SPS, PPS, b"\x65" + b"\x55" * 3000]), 1140)
    assert first[0] & 0x1F == 24
    assert first[0] & 0x60 == 0x60
    assert read([first]) == [SPS, PPS]
    assert {payload[0] & 0x1F for payload in rest} == {28}


def test_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(ValueError, match="carries nothing"):
        packetize(join_annexb([SPS]), 2)
    with pytest.raises(ValueError, match="without a NAL unit"):
        packetize(join_annexb([AUD]), 1140)
