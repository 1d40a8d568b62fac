"""The camera of a Raspberry Pi, by picamera2: HD from its main stream, SD from lores, each with its own encoder.

picamera2 calls encoders from its own event loop, under a lock: nothing here blocks or raises there. picamera2 does not
report that frames have stopped; the daemon watches their age, and stops and starts this source.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.metadata
import logging
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import av

from edge.camera.holders import camera_devices, holders_of
from edge.camera.jpeg import encode_jpeg
from edge.camera.picamera2_controls import FLIPS, offered, to_libcamera
from edge.camera.port import CameraMissing, Opening
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.annexb import NAL_SPS, BadBitstream, is_keyframe, nal_type, profile_level_id, split_annexb
from edge.core.camera_controls import still_accepted
from edge.core.h264_profile import read_profile_level
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from edge.camera.port import OnFailed, Plan, Sink
    from edge.core.camera_controls import ControlValues, Offered
    from edge.core.h264_profile import ProfileLevel

log = logging.getLogger(__name__)

OLDEST = (0, 3, 32)
"""The first picamera2 with `force_key_frame`."""

_STREAMS = {Quality.HD: "main", Quality.SD: "lores"}
_AV_FORMATS = {"YUV420": "yuv420p", "NV12": "nv12"}
_BUFFERS = 6
_SNAPSHOT_TIMEOUT_S = 2.0
_MARGIN_S = 1.0
"""A missing first picture is reported, and the camera closed, this long before the daemon's deadline for opening."""
_MIN_WAIT_S = 0.5
_ROUNDING = 1.02
"""Frame durations are whole microseconds, and sensors round the frame rate."""


def load() -> ModuleType:
    """Import picamera2.

    Raises: CameraMissing: it is not installed, is broken, or is too old.
    """
    try:
        library = importlib.import_module("picamera2")
        logging.getLogger("picamera2").setLevel(logging.WARNING)
    except Exception as exc:  # a broken installation may raise anything
        raise CameraMissing(f"picamera2 cannot be imported ({exc}): apt install python3-picamera2") from exc
    version = importlib.metadata.version("picamera2")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise CameraMissing(f"picamera2 {version} is too old, {oldest} is needed: apt full-upgrade")
    return library


def finds_a_camera() -> bool:
    """Whether picamera2 is installed and sees a camera."""
    try:
        with _translated_errors():
            return bool(load().Picamera2.global_camera_info())
    except CameraUnavailable as exc:
        log.info("picamera2 found no camera reason=%r", exc.detail)
        return False


class FlipRejected(CameraUnavailable):
    """The camera cannot flip its picture this way."""


class Picamera2Source:
    """One camera. `open_timeout_s`: how long its first picture may take."""

    name = "picamera2"

    def __init__(self, number: int, hd: Plan, sd: Plan, keyframe_interval_s: float, open_timeout_s: float) -> None:
        self._number = number
        self._plans = {Quality.HD: hd, Quality.SD: sd}
        self._keyframe_interval_s = keyframe_interval_s
        self._first_picture_timeout_s = max(_MIN_WAIT_S, open_timeout_s - _MARGIN_S)
        self._camera: Any = None
        self._encoders: dict[Quality, Any] = {}
        self._bitrates = {quality: plan.max_bps for quality, plan in self._plans.items()}
        self._offered: dict[str, Offered] = {}
        self._values: ControlValues = {}
        self._sink: Sink | None = None
        self._failed: OnFailed | None = None
        self._first: AccessUnit | None = None
        self._sd_failed: OnFailed = lambda _: None
        self._sd_failure: str | None = None
        self._failure: str | None = None
        self._announced: ProfileLevel | None = None
        self._first_keyframe = threading.Event()
        # Importing takes seconds on a small board, so do it before a viewer waits. `probe` and `start` report errors.
        with contextlib.suppress(CameraUnavailable):
            load()

    def probe(self) -> None:
        """List libcamera's cameras. libcamera detects new USB cameras; one on a Pi's connector needs a reboot."""
        with _translated_errors():
            found = load().Picamera2.global_camera_info()
        if self._number >= len(found):
            models = ", ".join(str(camera.get("Model")) for camera in found)
            raise _missing(f"camera {self._number} does not exist, found: {models or 'none'}")

    def start(self, values: ControlValues, sink: Sink, failed: OnFailed) -> Opening:
        library = load()
        started_s = time.monotonic()
        self._sink, self._failed = sink, failed
        self._announced = None
        self._values = dict(values)
        try:
            with _translated_errors():
                self._camera = library.Picamera2(self._number)
                try:
                    self._configure_and_start()
                except FlipRejected as exc:
                    log.warning("camera opened without flips error=%r", exc.detail)
                    self._values = {name: value for name, value in self._values.items() if name not in FLIPS}
                    self._configure_and_start()
            stream = self._first_picture(started_s)
        except BaseException:
            self.stop()
            raise
        return Opening(stream, (Quality.HD, Quality.SD), self._offered, self._values)

    def stop(self) -> None:
        self._sink = self._failed = None
        if self._camera is not None:
            self._close()
            self._camera = None
            # picamera2's objects form reference cycles. Free their file descriptors and scarce buffers now.
            gc.collect()

    def _close(self) -> None:
        camera = self._camera
        # After any failure, try every step to release the device. A step that hangs costs the process.
        for step in (camera.cancel_all_and_flush, camera.stop, self._stop_encoders, camera.close):
            try:
                step()
            except Exception:
                log.exception("camera did not close cleanly")
        self._encoders.clear()

    def encode_sd(self, *, on: bool, failed: OnFailed = lambda _: None) -> None:
        if on == (Quality.SD in self._encoders):
            return
        with _translated_errors():
            if on:
                self._sd_failed, self._sd_failure = failed, None
                self._start_encoder(Quality.SD)
            else:
                self._stop_encoder(Quality.SD)

    def request_keyframe(self, quality: Quality) -> None:
        if quality in self._encoders:
            self._encoders[quality].force_key_frame()

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        plan = self._plans[quality]
        self._bitrates[quality] = min(plan.max_bps, max(plan.min_bps, bitrate_bps))
        if quality in self._encoders:
            try:
                self._encoders[quality].set_bitrate(self._bitrates[quality])
            except OSError as exc:
                log.warning("driver rejected a bitrate bitrate_bps=%d error=%s", self._bitrates[quality], exc)

    def set_controls(self, values: ControlValues) -> None:
        before, changed = self._values, still_accepted({**self._values, **values}, self._offered)
        flip_changed = any(bool(values[name]) != bool(before.get(name)) for name in FLIPS if name in values)
        fps = self._plans[Quality.HD].fps
        with _translated_errors():
            if not flip_changed:
                advertised = self._camera.camera_controls
                try:
                    self._camera.set_controls(to_libcamera(values, advertised, fps))
                except Exception:
                    # picamera2 may have accepted some of them before it rejected one.
                    old = {name: before.get(name) for name in values}
                    self._camera.set_controls(to_libcamera(old, advertised, fps))
                    raise
                self._values = changed
                return
            with_sd = Quality.SD in self._encoders
            self._values = changed
            try:
                self._restart(with_sd=with_sd)
            except Exception:
                self._values = before
                self._restart(with_sd=with_sd)
                raise

    def _restart(self, *, with_sd: bool) -> None:
        """Stop and start the open camera: a flip takes effect at the sensor's readout. The picture stops briefly."""
        self._camera.stop()
        self._stop_encoders()
        self._configure_and_start()
        self.encode_sd(on=with_sd, failed=self._sd_failed)

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        with _translated_errors():
            try:
                request = self._camera.capture_request(wait=_SNAPSHOT_TIMEOUT_S)
            except TimeoutError:
                # Its job stays queued, and would block `close`.
                self._camera.cancel_all_and_flush()
                raise CameraUnavailable("the camera delivered no picture in time") from None
            try:
                picture = request.make_array("main")
                config = request.config["main"]
            finally:
                request.release()
            columns = config["size"][0]
            frame = av.VideoFrame.from_numpy_buffer(picture, format=_AV_FORMATS[config["format"]], width=columns)
            return encode_jpeg(frame, width, jpeg_quality)

    def _configure_and_start(self) -> None:
        """Configure the camera and start it with the encoder of HD."""
        plan = self._plans[Quality.HD]
        self._configure()
        advertised = self._camera.camera_controls
        self._offered = offered(advertised, plan.fps)
        self._values = still_accepted(self._values, self._offered)
        self._camera.set_controls(to_libcamera({"fps": None, **self._values}, advertised, plan.fps))
        self._first_keyframe.clear()
        self._first = self._failure = self._sd_failure = None
        self._start_encoder(Quality.HD)
        self._camera.start()

    def _configure(self) -> None:
        from libcamera import ColorSpace, Transform  # noqa: PLC0415  comes with picamera2

        from edge.camera.picamera2_encoders import CHOSEN  # noqa: PLC0415

        hd, sd = self._plans[Quality.HD], self._plans[Quality.SD]
        camera = self._camera
        columns, rows = camera.sensor_resolution
        if hd.width > columns or hd.height > rows:
            self._reject_mode(f"{hd.width}x{hd.height}")
        flips = Transform(hflip=self._values.get(FLIPS[0]) or False, vflip=self._values.get(FLIPS[1]) or False)
        pixel_format = CHOSEN.formats[0]
        # picamera2 chooses the mode nearest in size, which often crops the field of view. At half its resolution,
        # every sensor made for the Pi reads its whole field, and is fast enough.
        half = columns // 2, rows // 2
        size = half if half[0] >= hd.width and half[1] >= hd.height else (hd.width, hd.height)
        config = camera.create_video_configuration(
            main={"size": (hd.width, hd.height), "format": pixel_format},
            lores={"size": (sd.width, sd.height), "format": pixel_format},
            transform=flips,
            colour_space=ColorSpace.Rec709(),
            raw=None,  # its buffers are larger than all the others
            sensor={"output_size": size},
            buffer_count=_BUFFERS,
        )
        camera.configure(config)
        got = camera.camera_configuration()
        if got["transform"] != flips:
            raise FlipRejected(f"the camera cannot be flipped: {flips} became {got['transform']}")
        for quality, plan in self._plans.items():
            stream = got[_STREAMS[quality]]
            if tuple(stream["size"]) != (plan.width, plan.height):
                self._reject_mode(f"{plan.width}x{plan.height} for {quality}")
            if stream["format"] not in CHOSEN.formats:
                raise CameraUnavailable(
                    f"the camera delivers {stream['format']}, which the {CHOSEN.kind} encoder does not accept"
                )
        shortest_us = camera.camera_controls["FrameDurationLimits"][0]
        if hd.fps > 1_000_000 / shortest_us * _ROUNDING:
            self._reject_mode(f"{hd.width}x{hd.height} at {hd.fps} fps")

    def _reject_mode(self, requested: str) -> None:
        raise CameraUnavailable(
            f"the sensor does not offer {requested}; it has {', '.join(sensor_modes(self._camera))}"
        )

    def _start_encoder(self, quality: Quality) -> None:
        from edge.camera.picamera2_encoders import CHOSEN  # noqa: PLC0415

        hd, plan = self._plans[Quality.HD], self._plans[quality]
        try:
            encoder = CHOSEN(plan, self._keyframe_interval_s)
        except ValueError as exc:
            raise CameraUnavailable(f"{quality}: {exc}") from exc
        encoder.frame_skip_count = hd.fps // plan.fps
        encoder.on_coded = lambda payload, keyframe, at_ns: self._coded(quality, payload, keyframe, at_ns)
        encoder.on_failed = lambda message: self._report_failure(quality, message)
        self._camera.start_encoder(encoder, name=_STREAMS[quality])
        self._encoders[quality] = encoder
        if self._bitrates[quality] != plan.max_bps:
            encoder.set_bitrate(self._bitrates[quality])

    def _stop_encoders(self) -> None:
        for quality in list(self._encoders):
            self._stop_encoder(quality)

    def _stop_encoder(self, quality: Quality) -> None:
        encoder = self._encoders.pop(quality)
        encoder.stopping = True
        self._camera.stop_encoder(encoder)

    def _first_picture(self, started_s: float) -> StreamFormat:
        self._first_keyframe.wait(max(0.0, started_s + self._first_picture_timeout_s - time.monotonic()))
        if self._failure is not None:
            raise CameraUnavailable(self._failure)
        if self._first is None:
            raise CameraUnavailable(f"the camera gave no picture within {self._first_picture_timeout_s:g} s")
        plan, payload = self._plans[Quality.HD], self._first.payload
        sps = next(nal for nal in split_annexb(payload) if nal_type(nal) == NAL_SPS)
        kind = self._encoders[Quality.HD].kind
        return StreamFormat(plan.width, plan.height, float(plan.fps), profile_level_id(sps), kind)

    def _coded(self, quality: Quality, payload: bytes, keyframe: bool, captured_ns: int) -> None:
        """From the encoder's thread."""
        sink = self._sink
        if sink is None:
            return
        try:
            unit = AccessUnit(payload, captured_ns, keyframe and is_keyframe(payload), quality)
            if unit.keyframe:
                self._check_format(quality, payload)
        except BadBitstream as exc:
            self._report_failure(quality, f"the encoder changed the stream's format: {exc}")
            return
        if quality is Quality.HD:
            if self._first is None and unit.keyframe:
                self._first = unit
                self._first_keyframe.set()
            if self._sd_failure is not None:
                report, self._sd_failed = self._sd_failed, lambda _: None
                report(self._sd_failure)
                self._sd_failure = None
        sink(unit)

    def _check_format(self, quality: Quality, payload: bytes) -> None:
        """Check that the stream keeps the profile and level of HD's first picture, which viewers negotiated."""
        found = profile_level_id(next(nal for nal in split_annexb(payload) if nal_type(nal) == NAL_SPS))
        if self._announced is None:
            self._announced = read_profile_level(found)
        announced, now = self._announced, read_profile_level(found)
        if announced is None or now is None or now.profile is not announced.profile or not announced.carries(now):
            raise BadBitstream(f"{quality} is {found}, viewers negotiated {announced and announced.text}")

    def _report_failure(self, quality: Quality, message: str) -> None:
        """From the encoder's thread. A failure of SD is reported only when HD delivers its next picture.

        If both fail together, picamera2 may call either encoder first. Viewers of SD then keep it when the camera is
        opened again.
        """
        if quality is Quality.SD:
            self._sd_failure = message
            return
        self._failure = message
        self._first_keyframe.set()
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(message)


def sensor_modes(camera: Any) -> list[str]:  # noqa: ANN401  picamera2's
    """The sensor's modes, for an error message. Reading them changes the camera's configuration."""
    try:
        modes = [(*mode["size"], mode["fps"]) for mode in camera.sensor_modes]
    except (AttributeError, KeyError, RuntimeError):  # not a raw sensor
        limits = camera.camera_controls["FrameDurationLimits"]
        modes = [(*camera.sensor_resolution, round(1_000_000 / limits[0], 2))]
    return [f"{width}x{height} at up to {fps:g} fps" for width, height, fps in dict.fromkeys(modes)]


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn what picamera2, libcamera and the drivers raise into one error that names what to check."""
    try:
        yield
    except CameraUnavailable:
        raise
    except Exception as exc:
        raise _unavailable(exc) from exc


def _unavailable(exc: BaseException) -> CameraUnavailable:
    chain: list[BaseException] = []
    while exc not in chain:
        chain.append(exc)
        exc = exc.__cause__ or exc.__context__ or exc
    text = ": ".join(dict.fromkeys(str(link) or type(link).__name__ for link in chain))
    numbers = {getattr(link, "errno", None) for link in chain}
    if errno.EBUSY in numbers or "busy" in text.lower():
        holders = ", ".join(holders_of(camera_devices())) or "another process"
        return CameraUnavailable("the camera is in use", detail=f"the camera is in use by {holders}")
    if (
        errno.ENOMEM in numbers
        or "cannot allocate memory" in text.lower()
        or any(isinstance(link, MemoryError) for link in chain)
    ):
        return CameraUnavailable(f"out of memory for the camera's buffers (CMA): {text}")
    if "not found" in text.lower() or "no camera number" in text.lower():
        return _missing(text)
    return CameraUnavailable(text)


def _missing(text: str) -> CameraMissing:
    if any(not os.access(device, os.R_OK | os.W_OK) for device in camera_devices()):
        return CameraMissing(f"no camera may be opened: add the daemon's user to the group video ({text})")
    return CameraMissing(f"no camera found: look at its cable ({text})")
