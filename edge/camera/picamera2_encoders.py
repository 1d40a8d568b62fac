"""picamera2's two H.264 encoders, adapted to a live stream: V4L2 hardware, and libx264 on a Pi 5.

picamera2 chooses between them when it is imported: a Pi 5 has no hardware encoder. Both run in picamera2's threads,
where an exception would end the camera's event loop. So exceptions are caught here and reported as a failure.
"""

from __future__ import annotations

import fcntl
import logging
from typing import TYPE_CHECKING, Any

import videodev2
from av.video.frame import PictureType
from picamera2.encoders import H264Encoder as ChosenEncoder
from picamera2.encoders.h264_encoder import H264Encoder
from picamera2.encoders.libav_h264_encoder import LibavH264Encoder

from edge.camera.x264 import LOW_LATENCY, rate_options
from edge.core.annexb import level_for
from edge.core.keyframes import KeyframeQp

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.camera.port import Plan

log = logging.getLogger(__name__)

_PROFILE = "constrained baseline"
_HARDWARE_MACROBLOCKS_PER_S = 245_760
"""Level 4.0, 1080p30: the limit of a Zero 2 W, 3 and 4."""


class _LiveEncoder:
    """What both kinds share. `on_coded` gets Annex-B bytes, whether it is a keyframe, and the sensor time in ns."""

    kind: str
    formats = ("YUV420", "NV12")
    """Pixel formats that it accepts. The camera is asked for the first one."""
    on_coded: Callable[[bytes, bool, int], None]
    on_failed: Callable[[str], None]
    firsttimestamp: int | None
    broken = False
    stopping = False
    """Set before it is stopped. `stop` holds the encoder's lock, and the camera's event loop must not wait for it."""
    _stream: Any

    def outputframe(
        self,
        frame: Any,  # noqa: ANN401  bytes, or a buffer of the driver
        keyframe: bool = True,  # noqa: FBT002  picamera2's signature
        timestamp: int | None = None,
        packet: object = None,  # noqa: ARG002
        audio: bool = False,  # noqa: ARG002, FBT002
    ) -> None:
        """Replaces picamera2's outputs. `timestamp`: microseconds since this encoder's first picture."""
        self.on_coded(bytes(frame), bool(keyframe), ((self.firsttimestamp or 0) + (timestamp or 0)) * 1000)
        if keyframe:
            self.limit_keyframes(len(frame))

    def limit_keyframes(self, size_bytes: int) -> None:
        """Called after each keyframe; a kind without a rate buffer limits the size of the next ones."""

    def encode(self, stream: object, request: object) -> None:
        """Calls picamera2's method of the class that follows this one in the inheritance order."""
        try:
            if not self.broken and not self.stopping:
                super().encode(stream, request)  # type: ignore[misc]
        except Exception as exc:  # noqa: BLE001  reported as a failure
            self.failed(exc)

    def failed(self, exc: Exception) -> None:
        """Report the first failure; a broken encoder is not used again."""
        if not self.broken:
            self.broken = True
            log.error("encoder failed kind=%s error=%r", self.kind, exc)
            self.on_failed(f"the {self.kind} encoder broke: {exc}")


class HardwareEncoder(_LiveEncoder, H264Encoder):  # type: ignore[misc]
    """V4L2, on a Zero 2 W, 3 and 4. picamera2 always sets level 4.0 or higher."""

    kind = "v4l2"

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        blocks = -(-plan.width // 16) * -(-plan.height // 16) * plan.fps
        if blocks > _HARDWARE_MACROBLOCKS_PER_S:
            raise ValueError(
                f"the hardware encoder makes at most 1080p30, not {plan.width}x{plan.height} at {plan.fps}"
            )
        interval = max(1, round(keyframe_interval_s * plan.fps))
        super().__init__(bitrate=plan.max_bps, repeat=True, iperiod=interval, framerate=plan.fps, profile=_PROFILE)
        self._keyframe_qp = KeyframeQp()

    def limit_keyframes(self, size_bytes: int) -> None:
        """Raise the minimum QP after a large keyframe. The driver has no other control for the size of keyframes."""
        if self._keyframe_qp.update(size_bytes, self.bitrate):
            try:
                self._set_control(videodev2.V4L2_CID_MPEG_VIDEO_H264_MIN_QP, self._keyframe_qp.qp)
            except OSError as exc:
                log.info("encoder rejected a minimum QP qp=%d error=%s", self._keyframe_qp.qp, exc)

    def _start(self) -> None:
        try:
            super()._start()
        except BaseException:
            # picamera2 would leave its poll thread spinning and the device open.
            self._running = False
            thread = getattr(self, "thread", None)
            if thread is not None:
                thread.join()
            if self.vd is not None:
                self.vd.close()
            raise

    def set_bitrate(self, bitrate_bps: int) -> None:
        """picamera2 reads its attribute only at the start. The driver accepts the control at any time."""
        self.bitrate = bitrate_bps
        self._set_control(videodev2.V4L2_CID_MPEG_VIDEO_BITRATE, bitrate_bps)

    def _set_control(self, number: int, value: int) -> None:
        device = self.vd
        if device is not None and not device.closed:
            control = videodev2.v4l2_control()
            control.id = number
            control.value = value
            fcntl.ioctl(device, videodev2.VIDIOC_S_CTRL, control)

    def thread_poll(self, buf_available: object) -> None:
        try:
            super().thread_poll(buf_available)
        except Exception as exc:  # noqa: BLE001  reported as a failure
            self.failed(exc)


class SoftwareEncoder(_LiveEncoder, LibavH264Encoder):  # type: ignore[misc]
    """libx264, on a Pi 5 and on other machines. One thread, because each frame thread adds a frame of delay."""

    kind = "libx264"

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        interval = max(1, round(keyframe_interval_s * plan.fps))
        super().__init__(bitrate=plan.max_bps, repeat=True, iperiod=interval, framerate=plan.fps)
        self.threads = 1
        self.drop_final_frames = True
        self._plan = plan

    def _start(self) -> None:
        super()._start()
        plan = self._plan
        level = level_for(plan.width, plan.height, plan.fps, plan.max_bps)
        context = self._stream.codec_context  # opened by the first picture
        context.options = {**context.options, **LOW_LATENCY, **rate_options(plan.max_bps), "level": str(level)}
        self._stream = _KeyframesOnRequest(self._stream)

    def force_key_frame(self) -> None:
        """picamera2's method sets `pict_type` to a letter, at which PyAV 14 and later raise in the event loop."""
        self._stream.keyframe_due = True

    def set_bitrate(self, bitrate_bps: int) -> None:
        """libx264 accepts a new bitrate between pictures because the rate buffer was set when it was opened."""
        self._stream.codec_context.bit_rate = bitrate_bps


class _KeyframesOnRequest:
    """Adds keyframe requests to PyAV's stream, which cannot be subclassed."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401
        self._stream = stream
        self.keyframe_due = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def encode(self, frame: Any = None) -> Any:  # noqa: ANN401
        if frame is not None and self.keyframe_due:
            self.keyframe_due = False
            frame.pict_type = PictureType.I
        return self._stream.encode(frame)


CHOSEN: type[HardwareEncoder | SoftwareEncoder] = (
    SoftwareEncoder if issubclass(ChosenEncoder, LibavH264Encoder) else HardwareEncoder
)
"""The kind that picamera2 chose for this board."""
