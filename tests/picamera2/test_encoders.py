"""The encoders of picamera2: the choice, the limits, and the controls of the driver."""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import threading
import time
from typing import TYPE_CHECKING, Any

import picamera2.encoders
import pytest
import videodev2

from edge.camera.picamera2_encoders import CHOSEN, HardwareEncoder, SoftwareEncoder
from edge.camera.picamera2_source import Picamera2Source, load
from edge.camera.port import Plan
from edge.core.access_unit import Quality
from edge.errors import CameraUnavailable
from tests.contract.test_source import Sink

if TYPE_CHECKING:
    from pathlib import Path

HD = Plan(1280, 720, 30, 200_000, 2_000_000)
SD = Plan(640, 360, 30, 100_000, 600_000)


def test_a_board_without_an_encoder_gets_libx264_in_one_thread() -> None:
    assert CHOSEN is SoftwareEncoder
    assert issubclass(CHOSEN, picamera2.encoders.H264Encoder)
    assert SoftwareEncoder(HD, 10).threads == 1


def test_the_installed_encoder_accepts_the_pixel_formats() -> None:
    encoder = HardwareEncoder(HD, 10)
    for pixel_format in HardwareEncoder.formats:
        encoder.format = pixel_format
        assert encoder._v4l2_format


def test_the_hardware_encoder_is_set_to_constrained_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HardwareEncoder(HD, 10)
    monkeypatch.setattr(picamera2.encoders.v4l2_encoder.V4L2Encoder, "_start", lambda _: None)
    encoder.size = (1280, 720)
    encoder._start()
    requested = dict(encoder._controls)
    assert requested[videodev2.V4L2_CID_MPEG_VIDEO_H264_PROFILE] == (
        videodev2.V4L2_MPEG_VIDEO_H264_PROFILE_CONSTRAINED_BASELINE
    )
    assert requested[videodev2.V4L2_CID_MPEG_VIDEO_H264_I_PERIOD] == 300
    assert requested[videodev2.V4L2_CID_MPEG_VIDEO_REPEAT_SEQ_HEADER] == 1


def test_the_hardware_encoder_rejects_what_exceeds_its_limit() -> None:
    with pytest.raises(ValueError, match="at most 1080p30, not 1920x1080 at 60"):
        HardwareEncoder(HD._replace(width=1920, height=1080, fps=60), 10)
    HardwareEncoder(HD._replace(width=1920, height=1080), 10)


def test_a_bitrate_reaches_the_driver_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the control of the V4L2 device. hw-tests show that the driver of a Pi follows it."""
    requested: list[tuple[int, int, int]] = []

    def ioctl(_: Any, request: int, control: Any) -> int:
        requested.append((request, control.id, control.value))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    encoder = HardwareEncoder(HD, 10)
    encoder.set_bitrate(500_000)
    assert (requested, encoder.bitrate) == ([], 500_000)
    with (tmp_path / "video11").open("w") as device:
        encoder.vd = device
        encoder.set_bitrate(700_000)
    encoder.set_bitrate(800_000)  # closed by now
    assert requested == [(videodev2.VIDIOC_S_CTRL, videodev2.V4L2_CID_MPEG_VIDEO_BITRATE, 700_000)]


def test_a_keyframe_larger_than_half_a_second_of_the_stream_makes_the_next_ones_coarser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the minimum QP of the driver, which has no rate buffer. A driver that rejects it is only logged."""
    requested: list[tuple[int, int]] = []

    def ioctl(_: Any, __: int, control: Any) -> int:
        requested.append((control.id, control.value))
        if len(requested) > 1:
            raise OSError(22, "Invalid argument")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    encoder, coded = HardwareEncoder(HD, 10), []
    encoder.on_coded = lambda data, keyframe, _: coded.append((len(data), keyframe))
    with (tmp_path / "video11").open("w") as device:
        encoder.vd = device
        large = bytes(HD.max_bps // 8)
        encoder.outputframe(large, False, 0)
        encoder.outputframe(bytes(1000), True, 0)
        assert not requested
        encoder.outputframe(large, True, 0)
        encoder.outputframe(large, True, 0)
    assert requested == [
        (videodev2.V4L2_CID_MPEG_VIDEO_H264_MIN_QP, 26 + 6),
        (videodev2.V4L2_CID_MPEG_VIDEO_H264_MIN_QP, 26 + 12),
    ]
    assert len(coded) == 4


@pytest.mark.parametrize("kind", [HardwareEncoder, SoftwareEncoder])
def test_an_exception_in_picamera2s_thread_is_reported_once(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    reported: list[str] = []
    encoder = kind(HD, 10)
    encoder.on_failed = reported.append
    encoder._running = True
    monkeypatch.setattr(kind, "_encode", broken)
    for _ in range(3):
        encoder.encode("main", object())
    assert reported == [f"the {encoder.kind} encoder broke: [Errno 5] Input/output error"]


def test_a_library_that_is_too_old_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.3.31")
    with pytest.raises(CameraUnavailable, match=r"picamera2 0.3.31 is too old, 0.3.32 is needed"):
        load()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.4.0")
    assert load() is picamera2


def test_a_library_that_is_broken_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ValueError("numpy.dtype size changed")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(CameraUnavailable, match=r"numpy.dtype size changed.*apt install"):
        Picamera2Source(0, HD, SD, 10, 5).start({}, print, print)


def test_rejected_controls_are_not_applied_again_with_a_later_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the rejected one, nor those that picamera2 had accepted before it."""
    applied: list[dict[str, Any]] = []

    def set_controls(_: Any, controls: dict[str, Any]) -> None:
        applied.append(controls)
        if controls.get("FrameDurationLimits") == (100_000, 100_000):
            raise RuntimeError("Control FrameDurationLimits is not advertised by libcamera")

    sink = Sink()
    source = Picamera2Source(0, HD, SD, 10, 10)
    source.start({"fps": 20}, sink.unit, sink.failed)
    try:
        monkeypatch.setattr(picamera2.Picamera2, "set_controls", set_controls)
        with pytest.raises(CameraUnavailable, match="not advertised"):
            source.set_controls({"fps": 10})
        assert [controls["FrameDurationLimits"][0] for controls in applied] == [100_000, 50_000]
        source.set_controls({"flip_vertical": True})
        assert applied[-1]["FrameDurationLimits"] == (50_000, 50_000)
        sink.wait_for(len(sink.units) + 5)
    finally:
        source.stop()


def test_hd_and_sd_keep_the_full_frame_rate_with_low_latency() -> None:
    """No picture is missing, and the median latency is low. `./dev bench camera` measures the figures."""
    sink, late_ns = Sink(), []
    source = Picamera2Source(0, HD, SD, 10, 10)

    def arrived(unit: Any) -> None:
        late_ns.append(time.monotonic_ns() - unit.captured_ns)
        sink.unit(unit)

    source.start({}, arrived, sink.failed)
    source.encode_sd(on=True)
    try:
        sink.wait_for(20, Quality.SD)
        started_s, earlier = time.monotonic(), {quality: len(sink.of(quality)) for quality in Quality}
        sink.wait_for(earlier[Quality.HD] + 90)
        elapsed_s = time.monotonic() - started_s
    finally:
        source.stop()
    assert elapsed_s < 4.5
    assert abs(len(sink.of(Quality.SD)) - earlier[Quality.SD] - 90) <= 2
    assert sorted(late_ns)[len(late_ns) // 2] < 66_000_000


def test_a_hardware_encoder_that_cannot_start_leaves_no_thread_and_no_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a Pi without memory for buffers: picamera2 has started its poll thread and opened the device by then."""
    (tmp_path / "video11").touch()

    def spin(encoder: Any) -> None:
        while encoder._running:
            time.sleep(0.01)

    def no_memory(encoder: Any) -> None:
        encoder.vd = (tmp_path / "video11").open()
        encoder.thread = threading.Thread(target=spin, args=(encoder,))
        encoder.thread.start()
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(picamera2.encoders.v4l2_encoder.V4L2Encoder, "_start", no_memory)
    encoder = HardwareEncoder(SD, 10)
    encoder.size = (640, 360)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        encoder.start()
    assert not encoder.running
    assert not encoder.thread.is_alive()
    assert encoder.vd.closed


@pytest.mark.parametrize("kind", [HardwareEncoder, SoftwareEncoder])
def test_an_encoder_that_is_being_stopped_does_not_block_the_event_loop(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping holds the lock of the encoder, on V4L2 until its poll returns."""
    encoder = kind(SD, 10)
    encoder._running = True
    encoder.stopping = True
    with encoder._lock:
        encoder.encode("lores", object())
