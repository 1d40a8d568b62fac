"""A source without a camera: a drawn picture, encoded by libx264 as a Pi's own encoder would."""

from __future__ import annotations

import logging
import threading
import time
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from edge.camera.jpeg import encode_jpeg
from edge.camera.picture import Picture
from edge.camera.port import Opening
from edge.camera.x264 import LOW_LATENCY, rate_options
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.annexb import NAL_SPS, is_keyframe, level_for, nal_type, profile_level_id, split_annexb
from edge.core.camera_controls import Offered, still_taken
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from av import VideoFrame
    from numpy.typing import NDArray

    from edge.camera.port import Plan
    from edge.core.camera_controls import Values

log = logging.getLogger(__name__)

_MIDDLE = 128


class SyntheticSource:
    """Draws in real time, on its own thread. Constrained Baseline, one slice a picture.

    A few controls work on the drawing, so that what sets them can be tried without a camera.
    """

    name = "synthetic"

    def __init__(self, hd: Plan, sd: Plan, keyframe_interval_s: float) -> None:
        self._plans = {Quality.HD: hd, Quality.SD: sd}
        self._keyframe_interval_s = keyframe_interval_s
        self._offered = {
            "brightness": Offered(-1.0, 1.0, default=0.0),
            "contrast": Offered(0.0, 4.0, default=1.0),
            "flip_horizontal": Offered(default=False),
            "flip_vertical": Offered(default=False),
            "fps": Offered(1, hd.fps, default=hd.fps),
        }
        self._values: Values = {}
        # Held for the drawing and encoding of one picture, so that orders fall between pictures.
        self._lock = threading.Lock()
        self._encoders: dict[Quality, _Encoder] = {}
        self._drawing: _Drawing | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, values: Values, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> Opening:
        plan = self._plans[Quality.HD]
        self._values = still_taken(values, self._offered)
        drawing = self._drawing = _Drawing(plan)
        try:
            encoder = self._encoders[Quality.HD] = _Encoder(plan, self._keyframe_interval_s)
            first = encoder.encode(drawing.draw(self._values), Quality.HD, time.monotonic_ns())
        except (av.FFmpegError, ValueError) as exc:
            self._encoders.clear()
            raise CameraUnavailable(f"the encoder does not open: {exc}") from exc
        sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, args=(first, sink, failed), name="synthetic")
        self._thread.start()
        stream = StreamFormat(plan.width, plan.height, float(plan.fps), profile_level_id(sps), "libx264")
        return Opening(stream, (Quality.HD, Quality.SD), self._offered, self._values)

    def stop(self) -> None:
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None
        self._encoders.clear()
        self._drawing = None

    def encode_sd(self, *, on: bool, failed: Callable[[str], None] = lambda _: None) -> None:  # noqa: ARG002
        with self._lock:
            if not on:
                self._encoders.pop(Quality.SD, None)
            elif Quality.SD not in self._encoders:
                self._encoders[Quality.SD] = _Encoder(self._plans[Quality.SD], self._keyframe_interval_s)

    def request_keyframe(self, quality: Quality) -> None:
        with self._lock:
            if quality in self._encoders:
                self._encoders[quality].keyframe_due = True

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        with self._lock:
            if quality in self._encoders:
                self._encoders[quality].aim_at(bitrate_bps)

    def set_controls(self, values: Values) -> None:
        with self._lock:
            self._values = still_taken({**self._values, **values}, self._offered)

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        if self._drawing is None:
            raise CameraUnavailable("the camera is not open")
        with self._lock:
            return encode_jpeg(self._drawing.draw(self._values), width, jpeg_quality)

    def _run(self, unit: AccessUnit, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> None:
        plan = self._plans[Quality.HD]
        try:
            sink(unit)
            due_ns, number = unit.captured_ns, 0
            while True:
                period_ns = 1_000_000_000 // (self._values.get("fps") or plan.fps)
                # A little late is drawn at once; pictures that are over are skipped, never made up for.
                passed = max(1, (time.monotonic_ns() - due_ns) // period_ns)
                due_ns += passed * period_ns
                number += 1
                if self._ending.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                    return
                for coded in self._picture(number):
                    sink(coded)
        except (av.FFmpegError, ValueError) as exc:
            failed(f"the encoder broke: {exc}")
        except Exception as exc:
            log.exception("a bug in the drawn camera")
            failed(f"{type(exc).__name__}: {exc}")

    def _picture(self, number: int) -> list[AccessUnit]:
        every = self._plans[Quality.HD].fps // self._plans[Quality.SD].fps
        with self._lock:
            assert self._drawing is not None
            captured_ns = time.monotonic_ns()
            frame = self._drawing.draw(self._values)
            return [
                encoder.encode(frame, quality, captured_ns)
                for quality, encoder in self._encoders.items()
                if quality is Quality.HD or number % every == 0
            ]


class _Drawing:
    """One frame that is drawn into again and again, and a second one for what the controls make of it."""

    def __init__(self, plan: Plan) -> None:
        self._drawn = av.VideoFrame(plan.width, plan.height, "yuv420p")
        self._shown = av.VideoFrame(plan.width, plan.height, "yuv420p")
        self._picture = Picture(*_planes(self._drawn))

    def draw(self, values: Values) -> VideoFrame:
        """The picture of now."""
        self._picture.draw(time.time_ns() // 1_000_000, time.monotonic())
        brightness, contrast = values.get("brightness", 0.0), values.get("contrast", 1.0)
        turned = np.s_[:: -1 if values.get("flip_vertical") else 1, :: -1 if values.get("flip_horizontal") else 1]
        if (
            (brightness, contrast) == (0.0, 1.0)
            and not values.get("flip_vertical")
            and not values.get("flip_horizontal")
        ):
            return self._drawn
        levels = (np.arange(256) - _MIDDLE) * contrast + _MIDDLE + 255 * brightness
        table = levels.clip(0, 255).astype(np.uint8)
        for place, (shown, drawn) in enumerate(zip(_planes(self._shown), _planes(self._drawn), strict=True)):
            shown[:] = table[drawn[turned]] if place == 0 else drawn[turned]
        return self._shown


def _planes(frame: VideoFrame) -> list[NDArray[np.uint8]]:
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    ]


class _Encoder:
    """libx264, set up as for a Raspberry Pi 5."""

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        context = VideoCodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt = plan.width, plan.height, "yuv420p"
        context.framerate, context.time_base = Fraction(plan.fps), Fraction(1, 1_000_000)
        context.bit_rate = plan.max_bps
        context.gop_size = max(1, round(keyframe_interval_s * plan.fps))
        # Tune zerolatency would make a slice of each thread.
        context.thread_count = 1
        level = level_for(plan.width, plan.height, plan.fps, plan.max_bps)
        context.options = {**LOW_LATENCY, **rate_options(plan.max_bps), "level": str(level)}
        context.open()
        self.keyframe_due = False
        self._context = context
        self._plan = plan
        self._begun_ns: int | None = None

    def aim_at(self, bitrate_bps: int) -> None:
        # libx264 takes a new rate between pictures, since the rate buffer was set at open.
        self._context.bit_rate = min(self._plan.max_bps, max(self._plan.min_bps, bitrate_bps))

    def encode(self, frame: VideoFrame, quality: Quality, captured_ns: int) -> AccessUnit:
        """The coded picture.

        Raises: FFmpegError, ValueError: the encoder broke.
        """
        if self._begun_ns is None:
            self._begun_ns = captured_ns
        if frame.width != self._plan.width or frame.height != self._plan.height:
            frame = frame.reformat(width=self._plan.width, height=self._plan.height)
        frame.pts = (captured_ns - self._begun_ns) // 1000
        frame.time_base = self._context.time_base
        frame.pict_type = PictureType.I if self.keyframe_due else PictureType.NONE
        self.keyframe_due = False
        (packet,) = self._context.encode(frame)
        payload = bytes(packet)
        return AccessUnit(payload, captured_ns, packet.is_keyframe and is_keyframe(payload), quality)
