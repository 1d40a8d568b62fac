"""The picture of the synthetic source: a gradient, a moving ball, a wall clock, and the block code.

Only what moved is drawn again, to keep the load on a small computer low.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from edge.camera import block_code

if TYPE_CHECKING:
    from edge.camera.block_code import Luma

SWEEP_S = 4.0
"""The time in which the ball moves from one side to the other and back."""

_TEXT_COLUMNS = 12 * 6 - 1
# Five columns by seven rows. One number per row; the leftmost column is the highest bit.
_GLYPHS = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    ":": (0, 4, 4, 0, 4, 4, 0),
    ".": (0, 0, 0, 0, 0, 12, 12),
}


class Picture:
    """Draws into three planes of YUV 4:2:0: luma, then two of chroma at half size. The constructor fills them."""

    def __init__(self, luma: Luma, blue: Luma, red: Luma) -> None:
        self._luma = luma
        height, width = luma.shape
        rows, columns = np.mgrid[0:height, 0:width]
        luma[:] = 60 + 100 * (rows / height + columns / width) / 2
        blue[:] = np.linspace(108, 148, blue.shape[1])
        red[:] = np.linspace(148, 108, red.shape[1])

        scale = max(1, min(width // 90, height // 24))
        self._atlas = {glyph: _scaled(rows, scale) for glyph, rows in _GLYPHS.items()}
        top, left = (height - 7 * scale) // 2, (width - _TEXT_COLUMNS * scale) // 2
        self._text = luma[top : top + 7 * scale, left : left + 12 * 6 * scale]

        radius = min(width, height) // 10
        across = np.arange(2 * radius) - radius + 0.5
        self._ball = across[:, None] ** 2 + across**2 <= radius**2
        lane_top = height - 3 * radius
        self._lane = luma[lane_top : lane_top + 2 * radius]
        self._lane_background = self._lane.copy()
        self._ball_left = 0

    def draw(self, epoch_ms: int, monotonic_s: float) -> None:
        """Draw this wall-clock time, and the ball at its position at this time of a monotonic clock."""
        seconds, ms = divmod(epoch_ms, 1000)
        text = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ms:03}"
        self._text[:] = np.concatenate([self._atlas[glyph] for glyph in text], axis=1)[:, : self._text.shape[1]]
        block_code.draw(self._luma, epoch_ms)
        self._move_ball(abs((monotonic_s / SWEEP_S) % 1.0 * 2.0 - 1.0))

    def _move_ball(self, at: float) -> None:
        size = len(self._ball)
        old = np.s_[:, self._ball_left : self._ball_left + size]
        self._lane[old] = self._lane_background[old]
        self._ball_left = int(at * (self._lane.shape[1] - size))
        self._lane[:, self._ball_left : self._ball_left + size][self._ball] = 225


def _scaled(rows: tuple[int, ...], scale: int) -> Luma:
    """A glyph with a gap on its right, light on dark."""
    bits = [[row >> column & 1 for column in (4, 3, 2, 1, 0)] + [0] for row in rows]
    light = np.array(bits, dtype=np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    return np.where(light == 1, 235, 40).astype(np.uint8)
