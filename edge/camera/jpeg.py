"""A raw picture as a JPEG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame


def encode_jpeg(frame: VideoFrame, width: int | None, quality: int) -> bytes:
    """`width` pixels wide (None: as it is), as high as its proportions say; `quality` 1 to 95, as of libjpeg."""
    if width is not None and width < frame.width:
        height = max(2, round(frame.height * width / frame.width / 2) * 2)
        frame = frame.reformat(width=width, height=height)
    file = io.BytesIO()
    frame.to_image().save(file, "JPEG", quality=quality)
    return file.getvalue()
