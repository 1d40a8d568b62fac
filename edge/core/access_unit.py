"""The coded picture, as the camera encodes it and every viewer receives it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Quality(StrEnum):
    """The two encodings of the camera."""

    HD = "hd"
    SD = "sd"


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded picture with all its NAL units, in Annex B format with start codes.

    `captured_ns`: CLOCK_MONOTONIC, which all processes of the machine share.
    `keyframe`: an IDR access unit that carries SPS and PPS.
    """

    payload: bytes
    captured_ns: int
    keyframe: bool
    quality: Quality = Quality.HD


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """The format of one encoding, known when the source has opened, before the first picture."""

    width: int
    height: int
    fps: float
    profile_level_id: str
    """Six hex digits, the three bytes after the SPS's NAL header (RFC 6184, 8.1)."""
    encoder: str
