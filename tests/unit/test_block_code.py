"""The time that a machine reads off a picture."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from hypothesis import given
from hypothesis import strategies as st

from edge.camera import block_code
from edge.camera.picture import Picture

NOON_MS = 1_790_000_000_123


@given(st.integers(0, 2**48), st.integers(20, 1000).map(lambda half: half * 2))
def test_what_is_drawn_is_read_at_any_width(epoch_ms: int, width: int) -> None:
    luma = np.full((64, width), 128, np.uint8)
    block_code.draw(luma, epoch_ms)
    assert block_code.read(luma) == epoch_ms % 2**32
    assert (luma[block_code.ROWS :] == 128).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, block_code.BLOCKS - 1))
def test_a_damaged_block_is_noticed(epoch_ms: int, at: int) -> None:
    luma = np.zeros((16, 640), np.uint8)
    block_code.draw(luma, epoch_ms)
    block = luma[:, at * 16 : (at + 1) * 16]
    block[:] = 255 - block
    assert block_code.read(luma) is None


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_an_even_picture_has_no_code(shade: int) -> None:
    assert block_code.read(np.full((720, 1280), shade, np.uint8)) is None


def read_code(frame: av.VideoFrame, height: int) -> int | None:
    return block_code.read(np.asarray(frame.to_ndarray()[:height], np.uint8))


@pytest.mark.parametrize(
    ("width", "height"), [(160, 1920), (1920, 120), (160, 120), (322, 242), (640, 360), (854, 480), (1280, 720)]
)
def test_it_survives_h264_at_a_low_bitrate(width: int, height: int) -> None:
    encoder = VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.bit_rate = Fraction(1, 30), 300_000
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "maxrate": "300000", "bufsize": "150000"}
    decoder = VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    luma = np.zeros((height, width), np.uint8)
    chroma = [np.zeros((height // 2, width // 2), np.uint8) for _ in range(2)]
    picture = Picture(luma, *chroma)
    drawn, read = [], []
    for number in range(30):
        drawn.append((NOON_MS + 33 * number) % 2**32)
        picture.draw(NOON_MS + 33 * number, number / 30)
        flat = np.concatenate([luma.ravel(), *(plane.ravel() for plane in chroma)])
        frame = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
        frame.pts = number
        for packet in encoder.encode(frame):
            read += [read_code(shown, height) for shown in decoder.decode(packet)]
    read += [read_code(shown, height) for shown in decoder.decode(None)]
    assert read == drawn
