"""The coded picture that travels from the camera to every viewer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Quality(StrEnum):
    """The two encodes of the camera."""

    HD = "hd"
    SD = "sd"


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded picture with all its NAL units, Annex-B, start codes included.

    `captured_ns` is CLOCK_MONOTONIC, the same for every process of the machine.
    `keyframe`: an IDR access unit that carries SPS and PPS.
    """

    payload: bytes
    captured_ns: int
    keyframe: bool
    quality: Quality = Quality.HD


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """What an encode is, as its source says when it opens, before the first picture."""

    width: int
    height: int
    fps: float
    profile_level_id: str
    """Six hex digits, the three bytes after the SPS's NAL header (RFC 6184, 8.1)."""
    encoder: str
