"""picamera2's two H.264 encoders, made to do what a live stream needs: V4L2 hardware, and libx264 on a Pi 5.

picamera2 chooses between them when it is imported: a Pi 5 has no encoder of its own. Both run in picamera2's threads,
where an exception ends the camera's event loop for good; so they are caught here and told as a failure.
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
_HARDWARE_MACROBLOCKS_A_SECOND = 245_760
"""Of level 4.0: 1080p30. What a Zero 2 W, 3 and 4 encode in real time."""


class _Live:
    """What both kinds share. `on_coded` gets Annex-B bytes, keyframe or not, and the sensor's time in nanoseconds."""

    kind: str
    formats = ("YUV420", "NV12")
    """Pixel formats it takes, the one to ask the camera for first."""
    on_coded: Callable[[bytes, bool, int], None]
    on_failed: Callable[[str], None]
    firsttimestamp: int | None
    broken = False
    ending = False
    """Set before it is stopped: stopping holds its lock, which the camera's event loop must not wait for."""
    _stream: Any

    def outputframe(
        self,
        frame: Any,  # noqa: ANN401  bytes, or a buffer of the driver's
        keyframe: bool = True,  # noqa: FBT002  picamera2's signature
        timestamp: int | None = None,
        packet: object = None,  # noqa: ARG002
        audio: bool = False,  # noqa: ARG002, FBT002
    ) -> None:
        """Instead of picamera2's outputs. `timestamp`: microseconds since this encoder's first picture."""
        self.on_coded(bytes(frame), bool(keyframe), ((self.firsttimestamp or 0) + (timestamp or 0)) * 1000)
        if keyframe:
            self.keyframe_came(len(frame))

    def keyframe_came(self, size_bytes: int) -> None:
        """For kinds that have to see to its size."""

    def encode(self, stream: object, request: object) -> None:
        """picamera2's own, which stands behind this class."""
        try:
            if not self.broken and not self.ending:
                super().encode(stream, request)  # type: ignore[misc]
        except Exception as exc:  # noqa: BLE001  told as a failure
            self.failed(exc)

    def failed(self, exc: Exception) -> None:
        """Once: what is broken is tried no more."""
        if not self.broken:
            self.broken = True
            log.error("the %s encoder broke: %r", self.kind, exc)
            self.on_failed(f"the {self.kind} encoder broke: {exc}")


class HardwareEncoder(_Live, H264Encoder):  # type: ignore[misc]
    """V4L2, on a Zero 2 W, 3 and 4. picamera2 sets level 4.0 and no lower."""

    kind = "v4l2"

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        blocks = -(-plan.width // 16) * -(-plan.height // 16) * plan.fps
        if blocks > _HARDWARE_MACROBLOCKS_A_SECOND:
            raise ValueError(
                f"the hardware encoder makes at most 1080p30, not {plan.width}x{plan.height} at {plan.fps}"
            )
        every = max(1, round(keyframe_interval_s * plan.fps))
        super().__init__(bitrate=plan.max_bps, repeat=True, iperiod=every, framerate=plan.fps, profile=_PROFILE)
        self._least = KeyframeQp()

    def keyframe_came(self, size_bytes: int) -> None:
        """The driver has no control for a keyframe's size but its least QP."""
        if self._least.came(size_bytes, self.bitrate):
            try:
                self._control(videodev2.V4L2_CID_MPEG_VIDEO_H264_MIN_QP, self._least.qp)
            except OSError as exc:
                log.warning("the encoder does not take a least QP of %d: %s", self._least.qp, exc)

    def _start(self) -> None:
        try:
            super()._start()
        except BaseException:
            # picamera2 leaves its poll thread, which spins, and the device open.
            self._running = False
            thread = getattr(self, "thread", None)
            if thread is not None:
                thread.join()
            if self.vd is not None:
                self.vd.close()
            raise

    def set_bitrate(self, bitrate_bps: int) -> None:
        """picamera2 reads its attribute at the start only; the driver takes the control at any time."""
        self.bitrate = bitrate_bps
        self._control(videodev2.V4L2_CID_MPEG_VIDEO_BITRATE, bitrate_bps)

    def _control(self, number: int, value: int) -> None:
        device = self.vd
        if device is not None and not device.closed:
            control = videodev2.v4l2_control()
            control.id = number
            control.value = value
            fcntl.ioctl(device, videodev2.VIDIOC_S_CTRL, control)

    def thread_poll(self, buf_available: object) -> None:
        try:
            super().thread_poll(buf_available)
        except Exception as exc:  # noqa: BLE001  told as a failure
            self.failed(exc)


class SoftwareEncoder(_Live, LibavH264Encoder):  # type: ignore[misc]
    """libx264, on a Pi 5 and on machines that are no Pi. One thread: frame threads cost a frame of delay each."""

    kind = "libx264"

    def __init__(self, plan: Plan, keyframe_interval_s: float) -> None:
        every = max(1, round(keyframe_interval_s * plan.fps))
        super().__init__(bitrate=plan.max_bps, repeat=True, iperiod=every, framerate=plan.fps)
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
        """picamera2's own sets `pict_type` to a letter, which PyAV 14 and later refuse inside the event loop."""
        self._stream.keyframe_due = True

    def set_bitrate(self, bitrate_bps: int) -> None:
        """libx264 takes a new rate between pictures, since the rate buffer was set at open."""
        self._stream.codec_context.bit_rate = bitrate_bps


class _KeyframesOnRequest:
    """PyAV's stream, which is closed to subclasses, with a wish for a keyframe."""

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
"""The kind that this board has, as picamera2 found."""
