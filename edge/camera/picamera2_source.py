"""The camera of a Raspberry Pi, by picamera2: HD from its main stream, SD from lores, an encoder each.

picamera2 calls encoders from an event loop of its own, under a lock: nothing here blocks or raises there. Nor does it
say when frames stop coming: whoever watches their age stops this source and starts it again.
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
from edge.camera.port import Opening
from edge.core.access_unit import AccessUnit, Quality, StreamFormat
from edge.core.annexb import NAL_SPS, BadBitstream, is_keyframe, nal_type, profile_level_id, split_annexb
from edge.core.camera_controls import still_taken
from edge.core.h264_profile import read_profile_level
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from edge.camera.port import Plan
    from edge.core.camera_controls import Offered, Values
    from edge.core.h264_profile import ProfileLevel

log = logging.getLogger(__name__)

OLDEST = (0, 3, 32)
"""The first picamera2 with `force_key_frame`."""

_STREAMS = {Quality.HD: "main", Quality.SD: "lores"}
_AV_FORMATS = {"YUV420": "yuv420p", "NV12": "nv12"}
_BUFFERS = 6
_SNAPSHOT_TIMEOUT_S = 2.0
_MARGIN_S = 1.0
"""A first picture that stays away is told, and the camera closed, before the daemon's own deadline for opening."""
_LEAST_S = 0.5
_FASTER = 1.02
"""Frame durations are whole microseconds, and sensors round."""


def load() -> ModuleType:
    """picamera2, checked.

    Raises: CameraUnavailable: it is not there, or too old.
    """
    try:
        library = importlib.import_module("picamera2")
        logging.getLogger("picamera2").setLevel(logging.WARNING)
    except Exception as exc:  # what a broken installation raises is anybody's guess
        raise CameraUnavailable(f"picamera2 cannot be imported ({exc}): apt install python3-picamera2") from exc
    version = importlib.metadata.version("picamera2")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise CameraUnavailable(f"picamera2 {version} is too old, {oldest} is needed: apt full-upgrade")
    return library


def finds_a_camera() -> bool:
    """Whether picamera2 is there and sees a camera."""
    try:
        return bool(load().Picamera2.global_camera_info())
    except (CameraUnavailable, RuntimeError) as exc:
        log.info("no camera by picamera2: %s", exc)
        return False


class FlipRefused(CameraUnavailable):
    """The camera does not turn its picture so."""


class Picamera2Source:
    """One camera. `open_timeout_s`: how long it may take until its first picture."""

    name = "picamera2"

    def __init__(self, number: int, hd: Plan, sd: Plan, keyframe_interval_s: float, open_timeout_s: float) -> None:
        self._number = number
        self._plans = {Quality.HD: hd, Quality.SD: sd}
        self._keyframe_interval_s = keyframe_interval_s
        self._first_picture_s = max(_LEAST_S, open_timeout_s - _MARGIN_S)
        self._camera: Any = None
        self._encoders: dict[Quality, Any] = {}
        self._bitrates = {quality: plan.max_bps for quality, plan in self._plans.items()}
        self._offered: dict[str, Offered] = {}
        self._values: Values = {}
        self._sink: Callable[[AccessUnit], None] | None = None
        self._failed: Callable[[str], None] | None = None
        self._first: AccessUnit | None = None
        self._sd_failed: Callable[[str], None] = lambda _: None
        self._trouble: str | None = None
        self._promised: ProfileLevel | None = None
        self._came = threading.Event()
        # Importing takes seconds on a small board: now, while nobody waits. What is wrong is told by `start`.
        with contextlib.suppress(CameraUnavailable):
            load()

    def start(self, values: Values, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> Opening:
        library = load()
        begun_s = time.monotonic()
        self._sink, self._failed = sink, failed
        self._promised = None
        self._values = dict(values)
        try:
            with _told_in_words():
                self._camera = library.Picamera2(self._number)
                try:
                    self._begin()
                except FlipRefused as exc:
                    log.warning("%s: opened without", exc.message)
                    self._values = {name: value for name, value in self._values.items() if name not in FLIPS}
                    self._begin()
            stream = self._first_picture(begun_s)
        except BaseException:
            self.stop()
            raise
        return Opening(stream, (Quality.HD, Quality.SD), self._offered, self._values)

    def stop(self) -> None:
        self._sink = self._failed = None
        if self._camera is not None:
            self._close()
            self._camera = None
            # picamera2's parts are in circles: their descriptors, and a Pi's scarce buffers, go now, not some day.
            gc.collect()

    def _close(self) -> None:
        camera = self._camera
        # Whatever it was that broke: the device is to be let go of, and what cannot be is the process's end.
        for step in (camera.cancel_all_and_flush, camera.stop, self._end_encoders, camera.close):
            try:
                step()
            except Exception:
                log.exception("while the camera closes")
        self._encoders.clear()

    def encode_sd(self, *, on: bool, failed: Callable[[str], None] = lambda _: None) -> None:
        if on == (Quality.SD in self._encoders):
            return
        with _told_in_words():
            if on:
                self._sd_failed = failed
                self._start_encoder(Quality.SD)
            else:
                self._end_encoder(Quality.SD)

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
                log.warning("the driver does not take the bitrate: %s", exc)

    def set_controls(self, values: Values) -> None:
        before = self._values
        turned = any(bool(values[name]) != bool(before.get(name)) for name in FLIPS if name in values)
        self._values = still_taken({**before, **values}, self._offered)
        with _told_in_words():
            if not turned:
                advertised = self._camera.camera_controls
                self._camera.set_controls(to_libcamera(values, advertised, self._plans[Quality.HD].fps))
                return
            try:
                self._begin_again()
            except CameraUnavailable:
                self._values = before
                self._begin_again()
                raise

    def _begin_again(self) -> None:
        """A flip is made where the sensor is read out, so the camera has to begin again: a blink, no reopening."""
        with_sd = Quality.SD in self._encoders
        self._camera.stop()
        self._end_encoders()
        self._begin()
        self.encode_sd(on=with_sd, failed=self._sd_failed)

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        with _told_in_words():
            try:
                request = self._camera.capture_request(wait=_SNAPSHOT_TIMEOUT_S)
            except TimeoutError:
                # Its job stays queued, and would hold up the close.
                self._camera.cancel_all_and_flush()
                raise CameraUnavailable("the camera gave no picture in time") from None
            try:
                picture = request.make_array("main")
                config = request.config["main"]
            finally:
                request.release()
            wide = config["size"][0]
            frame = av.VideoFrame.from_numpy_buffer(picture, format=_AV_FORMATS[config["format"]], width=wide)
            return encode_jpeg(frame, width, jpeg_quality)

    def _begin(self) -> None:
        """Configure the camera, and start it with HD's encoder."""
        plan = self._plans[Quality.HD]
        self._configure()
        advertised = self._camera.camera_controls
        self._offered = offered(advertised, plan.fps)
        self._values = still_taken(self._values, self._offered)
        self._camera.set_controls({**to_libcamera({"fps": None, **self._values}, advertised, plan.fps)})
        self._came.clear()
        self._first = self._trouble = None
        self._start_encoder(Quality.HD)
        self._camera.start()

    def _configure(self) -> None:
        from libcamera import ColorSpace, Transform  # noqa: PLC0415  comes with picamera2

        from edge.camera.picamera2_encoders import CHOSEN  # noqa: PLC0415

        hd, sd = self._plans[Quality.HD], self._plans[Quality.SD]
        camera = self._camera
        wide, high = camera.sensor_resolution
        if hd.width > wide or hd.height > high:
            self._too_much(f"{hd.width}x{hd.height}")
        flips = Transform(hflip=self._values.get(FLIPS[0]) or False, vflip=self._values.get(FLIPS[1]) or False)
        asked = CHOSEN.formats[0]
        # picamera2 takes the mode that is nearest in size, which often shows a part of the field. At half its
        # resolution every sensor of the Pi's own reads the whole, and still fast enough.
        half = wide // 2, high // 2
        size = half if half[0] >= hd.width and half[1] >= hd.height else (hd.width, hd.height)
        config = camera.create_video_configuration(
            main={"size": (hd.width, hd.height), "format": asked},
            lores={"size": (sd.width, sd.height), "format": asked},
            transform=flips,
            colour_space=ColorSpace.Rec709(),
            raw=None,  # its buffers are larger than all the others
            sensor={"output_size": size},
            buffer_count=_BUFFERS,
        )
        camera.configure(config)
        got = camera.camera_configuration()
        if got["transform"] != flips:
            raise FlipRefused(f"the camera cannot be flipped so: {flips} became {got['transform']}")
        for quality, plan in self._plans.items():
            stream = got[_STREAMS[quality]]
            if tuple(stream["size"]) != (plan.width, plan.height):
                self._too_much(f"{plan.width}x{plan.height} for {quality}")
            if stream["format"] not in CHOSEN.formats:
                raise CameraUnavailable(
                    f"the camera gives {stream['format']}, which the {CHOSEN.kind} encoder does not take"
                )
        shortest_us = camera.camera_controls["FrameDurationLimits"][0]
        if hd.fps > 1_000_000 / shortest_us * _FASTER:
            self._too_much(f"{hd.width}x{hd.height} at {hd.fps} fps")

    def _too_much(self, asked: str) -> None:
        raise CameraUnavailable(f"the sensor does not offer {asked}; it has {', '.join(sensor_modes(self._camera))}")

    def _start_encoder(self, quality: Quality) -> None:
        from edge.camera.picamera2_encoders import CHOSEN  # noqa: PLC0415

        hd, plan = self._plans[Quality.HD], self._plans[quality]
        try:
            encoder = CHOSEN(plan, self._keyframe_interval_s)
        except ValueError as exc:
            raise CameraUnavailable(f"{quality}: {exc}") from exc
        encoder.frame_skip_count = hd.fps // plan.fps
        encoder.on_coded = lambda payload, keyframe, at_ns: self._coded(quality, payload, keyframe, at_ns)
        encoder.on_failed = lambda message: self._broke(quality, message)
        self._camera.start_encoder(encoder, name=_STREAMS[quality])
        self._encoders[quality] = encoder
        if self._bitrates[quality] != plan.max_bps:
            encoder.set_bitrate(self._bitrates[quality])

    def _end_encoders(self) -> None:
        for quality in list(self._encoders):
            self._end_encoder(quality)

    def _end_encoder(self, quality: Quality) -> None:
        encoder = self._encoders.pop(quality)
        encoder.ending = True
        self._camera.stop_encoder(encoder)

    def _first_picture(self, begun_s: float) -> StreamFormat:
        self._came.wait(max(0.0, begun_s + self._first_picture_s - time.monotonic()))
        if self._trouble is not None:
            raise CameraUnavailable(self._trouble)
        if self._first is None:
            raise CameraUnavailable(f"the camera gave no picture within {self._first_picture_s:g} s")
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
                self._check_promise(quality, payload)
        except BadBitstream as exc:
            self._broke(quality, f"the encoder does not keep to the stream's format: {exc}")
            return
        if quality is Quality.HD and self._first is None and unit.keyframe:
            self._first = unit
            self._came.set()
        sink(unit)

    def _check_promise(self, quality: Quality, payload: bytes) -> None:
        """Viewers were answered with the profile and level of HD's first picture, and may be given SD at any time."""
        found = profile_level_id(next(nal for nal in split_annexb(payload) if nal_type(nal) == NAL_SPS))
        if self._promised is None:
            self._promised = read_profile_level(found)
        promised, now = self._promised, read_profile_level(found)
        if promised is None or now is None or now.profile is not promised.profile or not promised.carries(now):
            raise BadBitstream(f"{quality} is {found}, answered was {promised and promised.text}")

    def _broke(self, quality: Quality, message: str) -> None:
        """From the encoder's thread; told once. SD that breaks is no matter of HD's."""
        if quality is Quality.SD:
            tell, self._sd_failed = self._sd_failed, lambda _: None
            tell(message)
            return
        self._trouble = message
        self._came.set()
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(message)


def sensor_modes(camera: Any) -> list[str]:  # noqa: ANN401  picamera2's
    """The sensor's modes in words. Reading them configures the camera anew."""
    try:
        modes = [(*mode["size"], mode["fps"]) for mode in camera.sensor_modes]
    except (AttributeError, KeyError, RuntimeError):  # not a raw sensor
        limits = camera.camera_controls["FrameDurationLimits"]
        modes = [(*camera.sensor_resolution, round(1_000_000 / limits[0], 2))]
    return [f"{wide}x{high} at up to {fps:g} fps" for wide, high, fps in dict.fromkeys(modes)]


@contextlib.contextmanager
def _told_in_words() -> Iterator[None]:
    """What picamera2, libcamera and the drivers raise, as one error that says what to look at."""
    try:
        yield
    except CameraUnavailable:
        raise
    except Exception as exc:
        raise CameraUnavailable(_words(exc)) from exc


def _words(exc: BaseException) -> str:
    chain: list[BaseException] = []
    while exc not in chain:
        chain.append(exc)
        exc = exc.__cause__ or exc.__context__ or exc
    said = ": ".join(dict.fromkeys(str(link) or type(link).__name__ for link in chain))
    numbers = {getattr(link, "errno", None) for link in chain}
    if errno.EBUSY in numbers or "busy" in said.lower():
        held = holders_of(camera_devices())
        return f"the camera is in use by {', '.join(held)}" if held else "the camera is in use by another process"
    if (
        errno.ENOMEM in numbers
        or "cannot allocate memory" in said.lower()
        or any(isinstance(e, MemoryError) for e in chain)
    ):
        return f"out of memory for the camera's buffers (CMA): {said}"
    if "not found" in said.lower() or "no camera number" in said.lower():
        if any(not os.access(device, os.R_OK | os.W_OK) for device in camera_devices()):
            return f"no camera may be opened: add the daemon's user to the group video ({said})"
        return f"no camera found: look at its cable ({said})"
    return said
