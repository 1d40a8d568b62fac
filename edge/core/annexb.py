"""The H.264 byte stream: split and join access units, read SPS and slice headers, choose the level."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NAL_SLICE = 1
NAL_IDR = 5
NAL_SPS = 7
NAL_PPS = 8
NAL_AUD = 9

_START_CODE = b"\x00\x00\x01"
_B_SLICE_TYPES = (1, 6)

# level_idc, macroblocks per second, macroblocks per picture, kbit/s. ITU-T H.264, table A-1, without level 1b.
_LEVELS = (
    (10, 1_485, 99, 64),
    (11, 3_000, 396, 192),
    (12, 6_000, 396, 384),
    (13, 11_880, 396, 768),
    (20, 11_880, 396, 2_000),
    (21, 19_800, 792, 4_000),
    (22, 20_250, 1_620, 4_000),
    (30, 40_500, 1_620, 10_000),
    (31, 108_000, 3_600, 14_000),
    (32, 216_000, 5_120, 20_000),
    (40, 245_760, 8_192, 20_000),
    (41, 245_760, 8_192, 50_000),
    (42, 522_240, 8_704, 50_000),
    (50, 589_824, 22_080, 135_000),
    (51, 983_040, 36_864, 240_000),
    (52, 2_073_600, 36_864, 240_000),
)


class BadBitstream(ValueError):
    """The bytes are not a valid H.264 stream."""


def split_annexb(access_unit: bytes) -> list[bytes]:
    """Split one access unit into NAL units without start codes.

    Shape: 1..n non-empty items, in bitstream order.
    Raises: BadBitstream: no start code, bytes before the first one, or nothing after one.
    Source: ITU-T H.264, Annex B.
    """
    at = access_unit.find(_START_CODE)
    if at < 0 or access_unit[:at].strip(b"\x00"):
        raise BadBitstream("the access unit does not begin with a start code")
    nals = []
    while at >= 0:
        begin = at + len(_START_CODE)
        at = access_unit.find(_START_CODE, begin)
        # A NAL unit never ends with a zero byte: these zeros are padding or part of the next start code.
        nal = access_unit[begin : at if at >= 0 else len(access_unit)].rstrip(b"\x00")
        if not nal:
            raise BadBitstream("no NAL unit follows a start code")
        nals.append(nal)
    return nals


def join_annexb(nals: Sequence[bytes]) -> bytes:
    """Join NAL units to an access unit, each after a four-byte start code."""
    return b"".join(b"\x00" + _START_CODE + nal for nal in nals)


def nal_type(nal: bytes) -> int:
    """Return nal_unit_type of a NAL unit without start code.

    Raises: BadBitstream: the NAL unit is empty.
    """
    if not nal:
        raise BadBitstream("a NAL unit is empty")
    return nal[0] & 0x1F


def is_keyframe(access_unit: bytes) -> bool:
    """Return whether a decoder can begin here: an IDR picture with SPS and PPS in the same access unit.

    Raises: BadBitstream: as split_annexb.
    """
    return {NAL_IDR, NAL_SPS, NAL_PPS} <= {nal_type(nal) for nal in split_annexb(access_unit)}


def is_b_slice(nal: bytes) -> bool:
    """Return whether a NAL unit is a B slice, which may need a later picture.

    Raises: BadBitstream: the slice header ends early.
    Source: ITU-T H.264, 7.3.3 and table 7-6.
    """
    if nal_type(nal) not in {NAL_SLICE, NAL_IDR}:
        return False
    header = nal[1:17].replace(b"\x00\x00\x03", b"\x00\x00")
    bits = "".join(f"{byte:08b}" for byte in header)
    _first_macroblock, at = _exp_golomb(bits, 0)
    slice_type, _ = _exp_golomb(bits, at)
    return slice_type in _B_SLICE_TYPES


def profile_level_id(sps_nal: bytes) -> str:
    """Return profile_idc, the constraint flags and level_idc of an SPS as six hex digits.

    Raises: BadBitstream: not an SPS, or too short.
    Source: RFC 6184, 8.1.
    """
    if nal_type(sps_nal) != NAL_SPS or len(sps_nal) < 4:
        raise BadBitstream("the NAL unit is not an SPS, or too short")
    return sps_nal[1:4].hex()


def level_for(width: int, height: int, fps: float, bitrate_bps: int) -> int:
    """Return the lowest level_idc that allows this stream in the Baseline profile.

    Raises: ValueError: no level allows it.
    Source: ITU-T H.264, A.3.1 and table A-1 (VCL bitrate).
    """
    columns, rows = -(-width // 16), -(-height // 16)
    macroblocks = columns * rows
    for level_idc, per_second, per_picture, kbps in _LEVELS:
        if (
            macroblocks <= per_picture
            and max(columns, rows) ** 2 <= 8 * per_picture
            and macroblocks * fps <= per_second
            and bitrate_bps <= kbps * 1000
        ):
            return level_idc
    raise ValueError(f"no H.264 level allows {width}x{height} at {fps} fps and {bitrate_bps} bit/s")


def _exp_golomb(bits: str, at: int) -> tuple[int, int]:
    one = bits.find("1", at)
    end = 2 * one - at + 1
    if one < 0 or end > len(bits):
        raise BadBitstream("the slice header ends early")
    return int(bits[one:end], 2) - 1, end
