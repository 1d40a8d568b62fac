"""The H.264 byte stream."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.annexb import (
    BadBitstream,
    is_b_slice,
    is_keyframe,
    join_annexb,
    level_for,
    nal_type,
    profile_level_id,
    split_annexb,
)

SPS = bytes.fromhex("6742c01fda014016e840000003004000000f23c60ca8")
PPS = bytes.fromhex("68ce3c80")
IDR = bytes.fromhex("65888201aa084c03800e05")
P_SLICE = bytes.fromhex("419a2022803c7c955c90538140f9980281f430281f")

# Valid NAL units: no start code inside, no zero byte at the end.
nal_units = st.binary(min_size=1, max_size=64).filter(
    lambda nal: b"\x00\x00" not in nal and nal[-1] != 0 and nal[0] != 0
)
wild = st.binary(max_size=64) | st.lists(st.sampled_from([b"\x00", b"\x01", b"\x65", b"\x67", b"\x68"])).map(b"".join)


@given(st.lists(nal_units, min_size=1, max_size=5))
def test_split_reverses_join(nals: list[bytes]) -> None:
    assert split_annexb(join_annexb(nals)) == nals


@given(st.lists(nal_units, min_size=1, max_size=5))
def test_short_start_codes_and_padding_do_not_matter(nals: list[bytes]) -> None:
    assert split_annexb(b"".join(b"\x00\x00\x01" + nal + b"\x00\x00" for nal in nals)) == nals


@given(wild)
def test_arbitrary_bytes_are_split_or_rejected(payload: bytes) -> None:
    try:
        nals = split_annexb(payload)
    except BadBitstream:
        return
    assert nals
    assert all(nal and b"\x00\x00\x01" not in nal for nal in nals)
    for nal in nals:
        assert 0 <= nal_type(nal) < 32
        with contextlib.suppress(BadBitstream):
            is_b_slice(nal)


@pytest.mark.parametrize(
    "payload", [b"", b"\x65\x88", b"\x65\x00\x00\x01\x65", b"\x00\x00\x01", b"\x00\x00\x01\x00\x00\x01\x65"]
)
def test_invalid_byte_streams_are_rejected(payload: bytes) -> None:
    with pytest.raises(BadBitstream):
        split_annexb(payload)


@pytest.mark.parametrize(
    ("nals", "expected"),
    [([SPS, PPS, IDR], True), ([IDR], False), ([SPS, IDR], False), ([PPS, IDR], False), ([SPS, PPS, P_SLICE], False)],
)
def test_a_keyframe_is_an_idr_with_both_parameter_sets(nals: list[bytes], expected: bool) -> None:
    assert is_keyframe(join_annexb(nals)) is expected


def test_profile_level_id_is_three_bytes_of_the_sps() -> None:
    assert profile_level_id(SPS) == "42c01f"


@pytest.mark.parametrize("nal", [b"", PPS, SPS[:3]])
def test_profile_level_id_rejects_other_nal_units(nal: bytes) -> None:
    with pytest.raises(BadBitstream):
        profile_level_id(nal)


@pytest.mark.parametrize(
    ("nal", "expected"),
    # first_mb_in_slice 0 is the bit 1; slice_type 5 (P) is 00110, 1 (B) is 010, 6 (B) is 00111.
    [(P_SLICE, False), (b"\x41\xa0", True), (b"\x41\x9c", True), (b"\x41\x98", False), (IDR, False), (SPS, False)],
)
def test_b_slices_are_recognized(nal: bytes, expected: bool) -> None:
    assert is_b_slice(nal) is expected


def test_a_truncated_slice_header_is_rejected() -> None:
    with pytest.raises(BadBitstream):
        is_b_slice(b"\x41\x00")


@pytest.mark.parametrize(
    ("width", "height", "fps", "bitrate_bps", "level_idc"),
    [
        (176, 144, 15, 64_000, 10),
        (352, 288, 30, 500_000, 13),
        (640, 360, 30, 1_000_000, 30),
        (1280, 720, 30, 2_000_000, 31),
        (1280, 720, 30, 14_000_000, 31),
        (1280, 720, 30, 14_000_001, 32),
        (1280, 720, 31, 2_000_000, 32),
        (1920, 1080, 30, 4_000_000, 40),
        (1920, 1080, 60, 4_000_000, 42),
        # Few macroblocks, but wider than the square root of eight times the level's macroblocks.
        (1920, 16, 1, 64_000, 31),
    ],
)
def test_level_is_the_lowest_that_allows_the_stream(
    width: int, height: int, fps: int, bitrate_bps: int, level_idc: int
) -> None:
    assert level_for(width, height, fps, bitrate_bps) == level_idc


def test_a_stream_above_every_level_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no H\.264 level"):
        level_for(16_000, 16_000, 30, 1)


@given(st.integers(16, 1920), st.integers(16, 1920), st.integers(1, 60), st.integers(1, 20_000_000))
def test_a_larger_stream_never_needs_a_lower_level(width: int, height: int, fps: int, bitrate_bps: int) -> None:
    level_idc = level_for(width, height, fps, bitrate_bps)
    assert level_for(width + 16, height, fps, bitrate_bps) >= level_idc
    assert level_for(width, height, fps + 1, bitrate_bps) >= level_idc
    assert level_for(width, height, fps, bitrate_bps + 1000) >= level_idc
