"""How libx264 is asked for low latency: for the drawn camera, and for the Pi 5, which has no encoder of its own."""

from __future__ import annotations

from edge.core.keyframes import KEYFRAME_S

LOW_LATENCY = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "profile": "baseline",
    "sc_threshold": "0",
    "forced-idr": "1",
    "x264-params": "annexb=1:repeat-headers=1:slices=1:colorprim=bt709:transfer=bt709:colormatrix=bt709",
}
"""One slice a picture, no B-frames, SPS and PPS in front of every keyframe, and every keyframe an IDR picture.

The colours are said, since players guess them by the size, and a change between HD and SD would show.
"""


def rate_options(most_bps: int) -> dict[str, str]:
    """The rate buffer. Set at open, or else libx264 takes no other bitrate while it runs."""
    return {"maxrate": str(most_bps), "bufsize": str(int(most_bps * KEYFRAME_S))}
