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
from edge.core.camera_controls import Offered, still_accepted
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

    from edge.camera.port import OnFailed, Plan, Sink
    from edge.core.camera_controls import ControlValues

log = logging.getLogger(__name__)

_MIDDLE = 128
_BROKEN = (av.FFmpegError, ValueError)
"""What PyAV raises where libx264 fails."""


class SyntheticSource:
    """Draws in real time, on its own thread. Constrained Baseline, one slice per picture.

    A few controls change the drawing, so that clients can be tested without a camera.
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
        self._values: ControlValues = {}
        # Held while one picture is drawn and encoded, so that orders take effect between pictures.
        self._lock = threading.Lock()
        self._encoders: dict[Quality, _Encoder] = {}
        self._sd_failed: OnFailed = lambda _: None
        self._drawing: _Drawing | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def probe(self) -> None:
        """Do nothing: there is no device to miss."""

    def start(self, values: ControlValues, sink: Sink, failed: OnFailed) -> Opening:
        plan = self._plans[Quality.HD]
        self._values = still_accepted(values, self._offered)
        drawing = self._drawing = _Drawing(plan)
        try:
            encoder = self._encoders[Quality.HD] = _open_encoder(plan, self._keyframe_interval_s)
            first = encoder.encode(drawing.draw(self._values), Quality.HD, time.monotonic_ns())
        except _BROKEN as exc:
            self._encoders.clear()
            raise CameraUnavailable(f"the encoder failed: {exc}") from exc
        sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(first, sink, failed), name="synthetic")
        self._thread.start()
        stream = StreamFormat(plan.width, plan.height, float(plan.fps), profile_level_id(sps), "libx264")
        return Opening(stream, (Quality.HD, Quality.SD), self._offered, self._values)

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        self._encoders.clear()
        self._drawing = None

    def encode_sd(self, *, on: bool, failed: OnFailed = lambda _: None) -> None:
        with self._lock:
            if not on:
                self._encoders.pop(Quality.SD, None)
            elif Quality.SD not in self._encoders:
                self._sd_failed = failed
                self._encoders[Quality.SD] = _open_encoder(self._plans[Quality.SD], self._keyframe_interval_s)

    def request_keyframe(self, quality: Quality) -> None:
        with self._lock:
            if quality in self._encoders:
                self._encoders[quality].keyframe_due = True

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        with self._lock:
            if quality in self._encoders:
                self._encoders[quality].set_bitrate(bitrate_bps)

    def set_controls(self, values: ControlValues) -> None:
        with self._lock:
            self._values = still_accepted({**self._values, **values}, self._offered)

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        if self._drawing is None:
            raise CameraUnavailable("the camera is not open")
        with self._lock:
            return encode_jpeg(self._drawing.draw(self._values), width, jpeg_quality)

    def _run(self, unit: AccessUnit, sink: Sink, failed: OnFailed) -> None:
        plan = self._plans[Quality.HD]
        try:
            sink(unit)
            due_ns, number = unit.captured_ns, 0
            while True:
                period_ns = 1_000_000_000 // (self._values.get("fps") or plan.fps)
                # A late picture is drawn at once. Missed pictures are skipped.
                periods = max(1, (time.monotonic_ns() - due_ns) // period_ns)
                due_ns += periods * period_ns
                number += 1
                if self._stopping.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                    return
                for coded in self._picture(number):
                    sink(coded)
        except _BROKEN as exc:
            failed(f"the encoder failed: {exc}")
        except Exception as exc:
            log.exception("synthetic camera failed")
            failed(f"{type(exc).__name__}: {exc}")

    def _picture(self, number: int) -> list[AccessUnit]:
        every = self._plans[Quality.HD].fps // self._plans[Quality.SD].fps
        with self._lock:
            assert self._drawing is not None
            captured_ns = time.monotonic_ns()
            frame = self._drawing.draw(self._values)
            coded = [self._encoders[Quality.HD].encode(frame, Quality.HD, captured_ns)]
            sd = self._encoders.get(Quality.SD) if number % every == 0 else None
            if sd is not None:
                try:
                    coded.append(sd.encode(frame, Quality.SD, captured_ns))
                except _BROKEN as exc:
                    del self._encoders[Quality.SD]
                    self._sd_failed(f"the encoder failed: {exc}")
            return coded


class _Drawing:
    """One frame that is drawn into for each picture, and a second one with the controls applied."""

    def __init__(self, plan: Plan) -> None:
        self._drawn = av.VideoFrame(plan.width, plan.height, "yuv420p")
        self._shown = av.VideoFrame(plan.width, plan.height, "yuv420p")
        self._picture = Picture(*_planes(self._drawn))

    def draw(self, values: ControlValues) -> VideoFrame:
        """Draw the present time."""
        self._picture.draw(time.time_ns() // 1_000_000, time.monotonic())
        brightness, contrast = values.get("brightness", 0.0), values.get("contrast", 1.0)
        flipped = np.s_[:: -1 if values.get("flip_vertical") else 1, :: -1 if values.get("flip_horizontal") else 1]
        if (
            (brightness, contrast) == (0.0, 1.0)
            and not values.get("flip_vertical")
            and not values.get("flip_horizontal")
        ):
            return self._drawn
        levels = (np.arange(256) - _MIDDLE) * contrast + _MIDDLE + 255 * brightness
        table = levels.clip(0, 255).astype(np.uint8)
        for place, (shown, drawn) in enumerate(zip(_planes(self._shown), _planes(self._drawn), strict=True)):
            shown[:] = table[drawn[flipped]] if place == 0 else drawn[flipped]
        return self._shown


def _planes(frame: VideoFrame) -> list[NDArray[np.uint8]]:
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    ]


def _open_encoder(plan: Plan, keyframe_interval_s: float) -> _Encoder:
    """Raises: CameraUnavailable: libx264 does not accept this plan."""
    try:
        return _Encoder(plan, keyframe_interval_s)
    except _BROKEN as exc:
        raise CameraUnavailable(f"the encoder does not open: {exc}") from exc


class _Encoder:
    """libx264 with the options used on a Raspberry Pi 5."""

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        context = VideoCodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt = plan.width, plan.height, "yuv420p"
        context.framerate, context.time_base = Fraction(plan.fps), Fraction(1, 1_000_000)
        context.bit_rate = plan.max_bps
        context.gop_size = max(1, round(keyframe_interval_s * plan.fps))
        # With tune zerolatency, each thread would encode a slice of its own.
        context.thread_count = 1
        level = level_for(plan.width, plan.height, plan.fps, plan.max_bps)
        context.options = {**LOW_LATENCY, **rate_options(plan.max_bps), "level": str(level)}
        context.open()
        self.keyframe_due = False
        self._context = context
        self._plan = plan
        self._started_ns: int | None = None

    def set_bitrate(self, bitrate_bps: int) -> None:
        # libx264 accepts a new bitrate between pictures because the rate buffer was set when it was opened.
        self._context.bit_rate = min(self._plan.max_bps, max(self._plan.min_bps, bitrate_bps))

    def encode(self, frame: VideoFrame, quality: Quality, captured_ns: int) -> AccessUnit:
        """Encode one picture.

        Raises: FFmpegError, ValueError: the encoder failed.
        """
        if self._started_ns is None:
            self._started_ns = captured_ns
        if frame.width != self._plan.width or frame.height != self._plan.height:
            frame = frame.reformat(width=self._plan.width, height=self._plan.height)
        frame.pts = (captured_ns - self._started_ns) // 1000
        frame.time_base = self._context.time_base
        frame.pict_type = PictureType.I if self.keyframe_due else PictureType.NONE
        self.keyframe_due = False
        (packet,) = self._context.encode(frame)
        payload = bytes(packet)
        return AccessUnit(payload, captured_ns, packet.is_keyframe and is_keyframe(payload), quality)
