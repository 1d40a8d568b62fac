"""A machine-readable time in a picture: 40 black or white blocks in the top rows.

32 bits of milliseconds since the epoch (modulo 2**32), then eight bits of checksum, most significant bit first. All
blocks have the same width; a remainder on the right stays untouched. Wide blocks survive coding, scaling and a lens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS = 40
ROWS = 16

Luma: TypeAlias = "NDArray[np.uint8]"

_BLACK, _WHITE = 16, 235


def draw(luma: Luma, epoch_ms: int) -> None:
    """Draw the code over the top rows of a luma plane of shape (rows, columns), at least 40 columns wide."""
    row = np.array([_WHITE if bit == "1" else _BLACK for bit in f"{_word(epoch_ms):0{BLOCKS}b}"], dtype=np.uint8)
    block = luma.shape[1] // BLOCKS
    luma[:ROWS, : block * BLOCKS] = row.repeat(block)


def read(luma: Luma) -> int | None:
    """The milliseconds modulo 2**32. None: there is no code, or its checksum is wrong."""
    block = luma.shape[1] // BLOCKS
    margin = block // 4
    inner = luma[ROWS // 4 : ROWS - ROWS // 4, : block * BLOCKS].reshape(-1, BLOCKS, block)
    light = inner[:, :, margin : block - margin].mean(axis=(0, 2)) > (_BLACK + _WHITE) / 2
    word = int("".join("1" if bit else "0" for bit in light), 2)
    return word >> 8 if _word(word >> 8) == word else None


def _word(epoch_ms: int) -> int:
    value = epoch_ms & 0xFFFFFFFF
    checksum = (value >> 24 ^ value >> 16 ^ value >> 8 ^ value ^ 0x5A) & 0xFF
    return value << 8 | checksum
