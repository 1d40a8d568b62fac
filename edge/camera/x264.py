"""Low-latency options of libx264, for the synthetic source and for the Pi 5, which has no hardware encoder."""

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
"""One slice per picture, no B-frames, every keyframe an IDR picture with SPS and PPS before it.

The colour space is set because players otherwise guess it from the size, and a change between HD and SD would show.
"""


def rate_options(max_bps: int) -> dict[str, str]:
    """The rate buffer. Unless it is set at open, libx264 ignores a later change of bitrate."""
    return {"maxrate": str(max_bps), "bufsize": str(int(max_bps * KEYFRAME_S))}
