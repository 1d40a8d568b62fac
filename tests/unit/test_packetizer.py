"""Access units as RTP payloads (RFC 6184), checked with an independent depacketizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.annexb import join_annexb
from edge.core.packetizer import packetize

SPS, PPS, AUD = b"\x67\x42\xc0\x1f\xda", b"\x68\xce\x3c\x80", b"\x09\xf0"


def read(payloads: list[bytes]) -> list[bytes]:
    """Depacketize: the NAL units that a receiver gets."""
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


# A NAL unit never ends with a zero byte and never contains a start code.
nal_units = st.builds(
    lambda kind, body: bytes([kind]) + body.replace(b"\x00", b"\x01") + b"\x80",
    st.sampled_from([0x67, 0x68, 0x65, 0x41, 0x06]),
    st.binary(max_size=5000),
)


@given(st.lists(nal_units, min_size=1, max_size=8), st.integers(20, 1200))
def test_payloads_fit_and_depacketize_to_the_same_nal_units(nals: list[bytes], limit: int) -> None:
    payloads = packetize(join_annexb(nals), limit)
    assert all(0 < len(payload) <= limit for payload in payloads)
    assert read(payloads) == nals


@given(st.integers(1, 60_000), st.integers(100, 1200))
def test_all_fragments_but_the_last_have_the_same_size(size: int, limit: int) -> None:
    payloads = packetize(join_annexb([b"\x65" + b"\x55" * size]), limit)
    sizes = [len(payload) for payload in payloads]
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]
    # The minimum number of fragments.
    assert len(payloads) == 1 or len(payloads) == -(-size // (limit - 2))


def test_parameter_sets_share_a_packet_and_the_delimiter_is_left_out() -> None:
    first, *rest = packetize(join_annexb([AUD, SPS, PPS, b"\x65" + b"\x55" * 3000]), 1140)
    assert first[0] & 0x1F == 24
    assert first[0] & 0x60 == 0x60
    assert read([first]) == [SPS, PPS]
    assert {payload[0] & 0x1F for payload in rest} == {28}


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="is too small"):
        packetize(join_annexb([SPS]), 2)
    with pytest.raises(ValueError, match="no NAL unit to send"):
        packetize(join_annexb([AUD]), 1140)
