"""Encode a raw picture as a JPEG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame


def encode_jpeg(frame: VideoFrame, width: int | None, quality: int) -> bytes:
    """Encode a frame. `width`: scale down to this many pixels (None: keep). `quality`: 1 to 95, of libjpeg."""
    if width is not None and width < frame.width:
        height = max(2, round(frame.height * width / frame.width / 2) * 2)
        frame = frame.reformat(width=width, height=height)
    file = io.BytesIO()
    frame.to_image().save(file, "JPEG", quality=quality)
    return file.getvalue()
