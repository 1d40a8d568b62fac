"""A source without a camera: a drawn picture, encoded by libx264 as a Pi's own encoder would."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from edge.camera.picture import Picture
from edge.core.access_unit import AccessUnit, StreamFormat
from edge.core.annexb import NAL_SPS, is_keyframe, level_for, nal_type, profile_level_id, split_annexb
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.core.access_unit import Quality

_VBV_S = 0.5
"""How much of the stream one keyframe may be at most: what a viewer's network has to take at once."""
_LOWEST_BITRATE_BPS = 50_000


class SyntheticSource:
    """Draws in real time, on its own thread. Constrained Baseline, one slice a picture, only HD."""

    def __init__(self, width: int, height: int, fps: int, bitrate_bps: int, keyframe_interval_s: float) -> None:
        self._size = (width, height)
        self._fps = fps
        self._most_bps = bitrate_bps
        self._keyframe_every = max(1, round(keyframe_interval_s * fps))
        self._wanted_bps = bitrate_bps
        self._keyframe_due = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> StreamFormat:
        try:
            encoder = _Encoder(*self._size, self._fps, self._most_bps, self._keyframe_every)
            first = encoder.encode(0, keyframe=False)
        except (av.FFmpegError, ValueError) as exc:
            raise CameraUnavailable(f"the encoder does not open: {exc}") from exc
        sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
        self._wanted_bps = self._most_bps
        self._keyframe_due.clear()
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, args=(encoder, first, sink, failed), name="synthetic")
        self._thread.start()
        return StreamFormat(*self._size, float(self._fps), profile_level_id(sps), "libx264")

    def stop(self) -> None:
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None

    def request_keyframe(self, quality: Quality) -> None:  # noqa: ARG002  there is one quality
        self._keyframe_due.set()

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:  # noqa: ARG002  there is one quality
        """The settings' bitrate is the ceiling: the level in the SPS and the rate buffer are made for it."""
        self._wanted_bps = min(self._most_bps, max(_LOWEST_BITRATE_BPS, bitrate_bps))

    def _run(
        self,
        encoder: _Encoder,
        unit: AccessUnit,
        sink: Callable[[AccessUnit], None],
        failed: Callable[[str], None],
    ) -> None:
        begun_ns, slot = unit.captured_ns, 0
        period_ns = 1_000_000_000 // self._fps
        try:
            while True:
                sink(unit)
                # A little late is drawn at once; pictures that are over are skipped, never made up for.
                slot = max(slot + 1, (time.monotonic_ns() - begun_ns) // period_ns)
                if self._ending.wait((begun_ns + slot * period_ns - time.monotonic_ns()) / 1e9):
                    return
                encoder.aim_at(self._wanted_bps)
                keyframe = self._keyframe_due.is_set()
                if keyframe:
                    self._keyframe_due.clear()
                unit = encoder.encode(slot, keyframe=keyframe)
        except (av.FFmpegError, ValueError) as exc:
            failed(f"the encoder broke: {exc}")


class _Encoder:
    """The picture, and libx264 set up for it. One frame is drawn into again and again: x264 copies what it takes."""

    def __init__(self, width: int, height: int, fps: int, bitrate_bps: int, keyframe_every: int) -> None:
        context = VideoCodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.framerate, context.time_base = Fraction(fps), Fraction(1, fps)
        context.bit_rate = bitrate_bps
        # Tune zerolatency would make a slice of each thread.
        context.thread_count = 1
        context.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "profile": "baseline",
            "level": str(level_for(width, height, fps, bitrate_bps)),
            "g": str(keyframe_every),
            "sc_threshold": "0",
            "forced-idr": "1",
            "maxrate": str(bitrate_bps),
            "bufsize": str(int(bitrate_bps * _VBV_S)),
            "x264-params": "annexb=1:repeat-headers=1:slices=1",
        }
        context.open()
        self._context = context
        self._frame = av.VideoFrame(width, height, "yuv420p")
        luma, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
            for plane in self._frame.planes
        )
        self._picture = Picture(luma, blue, red)

    def aim_at(self, bitrate_bps: int) -> None:
        # libx264 takes a new rate between pictures, since the rate buffer was set at open.
        if self._context.bit_rate != bitrate_bps:
            self._context.bit_rate = bitrate_bps

    def encode(self, slot: int, *, keyframe: bool) -> AccessUnit:
        """The picture of now. `slot`: its number at a steady frame rate.

        Raises: FFmpegError, ValueError: the encoder broke.
        """
        captured_ns = time.monotonic_ns()
        self._picture.draw(time.time_ns() // 1_000_000, captured_ns / 1e9)
        self._frame.pts = slot
        self._frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        (packet,) = self._context.encode(self._frame)
        payload = bytes(packet)
        return AccessUnit(payload, captured_ns, packet.is_keyframe and is_keyframe(payload))
