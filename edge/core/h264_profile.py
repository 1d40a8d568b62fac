"""H.264 profiles in SDP, and the offered profiles under which a stream may be sent.

Source: RFC 6184, 8.1 (profile-level-id, table 5) and 8.2.2 (level asymmetry).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Profile(StrEnum):
    """The profiles that browsers offer, from table 5 of RFC 6184."""

    CONSTRAINED_BASELINE = "constrained baseline"
    BASELINE = "baseline"
    MAIN = "main"
    CONSTRAINED_HIGH = "constrained high"
    HIGH = "high"


# profile_idc, then mask and expected value of the profile-iop byte
_TABLE = (
    (0x42, 0x4F, 0x40, Profile.CONSTRAINED_BASELINE),
    (0x4D, 0x8F, 0x80, Profile.CONSTRAINED_BASELINE),
    (0x58, 0xCF, 0xC0, Profile.CONSTRAINED_BASELINE),
    (0x42, 0x4F, 0x00, Profile.BASELINE),
    (0x58, 0xCF, 0x80, Profile.BASELINE),
    (0x4D, 0xAF, 0x00, Profile.MAIN),
    (0x64, 0xFF, 0x0C, Profile.CONSTRAINED_HIGH),
    (0x64, 0xFF, 0x00, Profile.HIGH),
)

# The profiles whose decoders play a stream of each profile, best first (ITU-T H.264, A.2).
_PLAYED_BY = {
    Profile.CONSTRAINED_BASELINE: (
        Profile.CONSTRAINED_BASELINE,
        Profile.BASELINE,
        Profile.MAIN,
        Profile.CONSTRAINED_HIGH,
        Profile.HIGH,
    ),
    Profile.BASELINE: (Profile.BASELINE,),
    Profile.MAIN: (Profile.MAIN, Profile.HIGH),
    Profile.CONSTRAINED_HIGH: (Profile.CONSTRAINED_HIGH, Profile.HIGH),
    Profile.HIGH: (Profile.HIGH,),
}

_LEVEL_1B_FLAG = 0x10
_SIX_HEX_DIGITS = re.compile(r"[0-9A-Fa-f]{6}")


@dataclass(frozen=True, slots=True)
class ProfileLevel:
    """A parsed profile-level-id."""

    text: str
    profile: Profile
    level_idc: int
    """Ten times the level; level 1b is ordered between 1 and 1.1."""

    @property
    def _rank(self) -> float:
        iop = int(self.text[2:4], 16)
        is_1b = self.level_idc == 9 or (self.level_idc == 11 and iop & _LEVEL_1B_FLAG and self.text[:2] != "64")
        return 10.5 if is_1b else self.level_idc

    def carries(self, stream: ProfileLevel) -> bool:
        """Return whether a receiver of this level can play a stream of that level."""
        return self._rank >= stream._rank

    def preference(self, stream: ProfileLevel) -> int | None:
        """Return how well this profile describes the stream, 0 is best; None: its decoders need not play the stream."""
        names = _PLAYED_BY[stream.profile]
        return names.index(self.profile) if self.profile in names else None

    def at_level(self, level_idc: int) -> ProfileLevel:
        """Return this profile at another level. `level_idc`: ten times the level."""
        return ProfileLevel(f"{self.text[:4]}{level_idc:02x}", self.profile, level_idc)

    def at_level_of(self, stream: ProfileLevel) -> str:
        """Return the offered profile with the stream's level, for the answer."""
        if self.profile == stream.profile and self.text[:2] == stream.text[:2]:
            return stream.text
        return self.text[:4] + stream.text[4:]


def read_profile_level(text: str) -> ProfileLevel | None:
    """Parse six hex digits; None: not six hex digits, or not a profile of the table."""
    if not _SIX_HEX_DIGITS.fullmatch(text):
        return None
    idc, iop, level_idc = bytes.fromhex(text)
    for table_idc, mask, value, profile in _TABLE:
        if idc == table_idc and iop & mask == value:
            return ProfileLevel(text.lower(), profile, level_idc)
    return None
