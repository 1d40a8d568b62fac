"""The contract of every source: synthetic, recordings of each kind and, in the camera root, the real picamera2."""

from __future__ import annotations

import importlib.util
import io
import itertools
import threading
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from edge.camera import block_code
from edge.camera.file import FileSource
from edge.camera.port import Plan
from edge.camera.synthetic import SyntheticSource
from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import NAL_SPS, is_keyframe, level_for, nal_type, profile_level_id, split_annexb
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.camera.port import Source

FPS = 30
RECORDED_PICTURES = 20
WIDTH, HEIGHT = 320, 240
GENEROUS_S = 20.0
OFFERS = Path(__file__).parents[1] / "offers"


@dataclass
class Sink:
    """Collects access units, and lets a test wait for a number of them."""

    units: list[AccessUnit] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def unit(self, unit: AccessUnit) -> None:
        with self._arrived:
            self.units.append(unit)
            self._arrived.notify_all()

    def failed(self, message: str) -> None:
        with self._arrived:
            self.failures.append(message)
            self._arrived.notify_all()

    def wait_for(self, count: int, quality: Quality = Quality.HD) -> list[AccessUnit]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.of(quality)) >= count or self.failures, GENEROUS_S)
        assert not self.failures
        return self.of(quality)[:count]

    def of(self, quality: Quality) -> list[AccessUnit]:
        return [unit for unit in self.units if unit.quality is quality]


def record(path: Path, *, b_frames: int = 0, codec: str = "libx264", skip: int = 0) -> Path:
    """A recording of RECORDED_PICTURES pictures, a keyframe every ten; the first `skip` packets are left out."""
    options = {"preset": "ultrafast", "bf": str(b_frames), "g": "10", "sc_threshold": "0", "b_strategy": "0"}
    if not b_frames:
        options["tune"] = "zerolatency"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        packets: list[av.Packet[av.VideoStream]] = []
        for number in range(RECORDED_PICTURES):
            plane = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            plane[:60, number * 8 : number * 8 + 60] = 220
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets[skip:]:
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return {kind: record(folder / f"short.{kind}") for kind in ("h264", "ts", "mp4")}


def plan(width: int = WIDTH, height: int = HEIGHT, max_bps: int = 1_000_000, fps: int = FPS) -> Plan:
    return Plan(width, height, fps, 50_000, max_bps)


def synthetic(hd: Plan | None = None, sd: Plan | None = None, keyframe_interval_s: float = 10) -> Source:
    return SyntheticSource(hd or plan(), sd or plan(160, 120, 200_000), keyframe_interval_s)


def picamera2(hd: Plan | None = None, sd: Plan | None = None, keyframe_interval_s: float = 10) -> Source:
    from edge.camera.picamera2_source import Picamera2Source

    return Picamera2Source(0, hd or plan(), sd or plan(160, 120, 200_000), keyframe_interval_s, GENEROUS_S)


# `auto` makes the same choice: picamera2 if it is installed.
CAMERAS: dict[str, Callable[..., Source]] = {"synthetic": synthetic}
if importlib.util.find_spec("picamera2"):
    CAMERAS["picamera2"] = picamera2


@pytest.fixture(params=[*CAMERAS, "h264", "ts", "mp4"])
def source(request: pytest.FixtureRequest, recordings: dict[str, Path]) -> Iterator[Source]:
    source = CAMERAS[request.param]() if request.param in CAMERAS else FileSource(recordings[request.param], FPS)
    yield source
    source.stop()


@pytest.fixture(params=CAMERAS)
def make_camera(request: pytest.FixtureRequest) -> Iterator[Callable[..., Source]]:
    """A source with encoders of its own, stopped when the test ends."""
    made: list[Source] = []

    def make(*args: Any, **kwargs: Any) -> Source:
        made.append(CAMERAS[request.param](*args, **kwargs))
        return made[-1]

    yield make
    for source in made:
        source.stop()


def played(source: Source, count: int) -> list[AccessUnit]:
    sink = Sink()
    source.start({}, sink.unit, sink.failed)
    try:
        return sink.wait_for(count)
    finally:
        source.stop()


def pictures(units: list[AccessUnit]) -> list[av.VideoFrame]:
    decoder = VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    shown: list[av.VideoFrame] = []
    for number, unit in enumerate(units):
        packet = av.Packet(unit.payload)
        packet.pts = number
        shown += decoder.decode(packet)
    return shown + decoder.decode(None)


def test_the_first_access_unit_is_a_keyframe(source: Source) -> None:
    (first,) = played(source, 1)
    assert first.keyframe
    assert is_keyframe(first.payload)


def test_every_access_unit_is_one_picture_of_one_slice(source: Source) -> None:
    for unit in played(source, 2 * RECORDED_PICTURES):
        slices = [nal for nal in split_annexb(unit.payload) if nal_type(nal) in {1, 5}]
        assert len(slices) == 1
        assert unit.keyframe is is_keyframe(unit.payload)
        assert unit.keyframe is (nal_type(slices[0]) == 5)


def test_every_access_unit_decodes_in_order(source: Source) -> None:
    units = played(source, 2 * RECORDED_PICTURES + 5)
    shown = pictures(units)
    assert [frame.pts for frame in shown] == list(range(len(units)))
    assert {(frame.width, frame.height) for frame in shown} == {(WIDTH, HEIGHT)}


def test_the_format_matches_the_stream(source: Source) -> None:
    sink = Sink()
    stream = source.start({}, sink.unit, sink.failed).format
    first = sink.wait_for(1)[0]
    source.stop()
    sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
    assert stream.profile_level_id == profile_level_id(sps)
    assert (stream.width, stream.height, stream.fps) == (WIDTH, HEIGHT, FPS)


def test_timestamps_increase_at_the_frame_rate_also_across_the_loop(source: Source) -> None:
    started_ns = time.monotonic_ns()
    units = played(source, 2 * RECORDED_PICTURES + 5)
    stamps = [unit.captured_ns for unit in units]
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    assert started_ns <= stamps[0]
    assert stamps[-1] <= time.monotonic_ns()
    assert min(steps) > 0
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1e9 / FPS, rel=0.3)


def test_stop_is_final_and_start_works_again(source: Source) -> None:
    source.stop()
    for _ in range(2):
        sink = Sink()
        source.start({}, sink.unit, sink.failed)
        sink.wait_for(3)
        source.stop()
        count = len(sink.units)
        source.stop()
        assert not {"synthetic", "file"} & {thread.name for thread in threading.enumerate()}
        assert sink.units[0].keyframe
        assert len(sink.units) == count
        assert not sink.failures


def test_orders_are_accepted_while_it_runs(source: Source) -> None:
    sink = Sink()
    source.start({}, sink.unit, sink.failed)
    source.request_keyframe(Quality.HD)
    source.set_bitrate(Quality.HD, 300_000)
    sink.wait_for(RECORDED_PICTURES)
    source.stop()


def test_a_keyframe_comes_within_two_frames_of_the_request(make_camera: Callable[..., Source]) -> None:
    source = make_camera(keyframe_interval_s=60)
    sink = Sink()
    source.start({}, sink.unit, sink.failed)
    source.encode_sd(on=True)
    for quality in Quality:
        before = len(sink.wait_for(5, quality))
        source.request_keyframe(quality)
        requested_at = len(sink.of(quality))
        units = sink.wait_for(requested_at + 8, quality)
        assert [unit.keyframe for unit in units[1:before]] == [False] * (before - 1)
        # One picture may be in the encoder when the request arrives.
        assert [unit.keyframe for unit in units[requested_at:]].index(True) <= 2
        assert sum(unit.keyframe for unit in units[requested_at:]) == 1
    source.stop()


SIZES = [(1920, 1080, 4_000_000, 40), (1280, 720, 2_000_000, 31), (640, 360, 600_000, 30), (320, 240, 300_000, 13)]


@pytest.mark.parametrize(("width", "height", "max_bps", "level"), SIZES)
def test_the_stream_is_constrained_baseline_at_the_level_it_needs(
    make_camera: Callable[..., Source], width: int, height: int, max_bps: int, level: int
) -> None:
    sink = Sink()
    source = make_camera(plan(width, height, max_bps))
    stream = source.start({}, sink.unit, sink.failed).format
    (frame,) = pictures(sink.wait_for(1))
    source.stop()
    profile_idc, constraints, level_idc = bytes.fromhex(stream.profile_level_id)
    assert (profile_idc, constraints & 0x40) == (66, 0x40)
    assert level_idc == level
    assert (frame.width, frame.height) == (stream.width, stream.height) == (width, height)


@pytest.mark.parametrize(("width", "height", "max_bps", "level"), SIZES)
def test_one_answer_covers_both_qualities_at_every_size(
    make_camera: Callable[..., Source], width: int, height: int, max_bps: int, level: int
) -> None:
    """A viewer negotiates once, from the format of HD, and may be sent either quality on that connection."""
    sink = Sink()
    source = make_camera(plan(width, height, max_bps))
    stream = read_profile_level(source.start({}, sink.unit, sink.failed).format.profile_level_id)
    source.encode_sd(on=True)
    firsts = [sink.wait_for(1, quality)[0] for quality in Quality]
    source.stop()
    assert stream is not None
    negotiated = read_profile_level(read_offer((OFFERS / "chrome.sdp").read_text()).choose(stream).profile_level_id)
    assert negotiated is not None
    for first in firsts:
        sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
        sent = read_profile_level(profile_level_id(sps))
        assert sent is not None
        assert sent.profile is negotiated.profile
        assert negotiated.carries(sent)
        # The answer to a viewer that gets SD because of its level names this level.
        if first.quality is Quality.SD:
            assert sent.level_idc == level_for(160, 120, FPS, 200_000)


def test_keyframes_stay_within_the_rate_buffer(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera(plan(640, 360, 200_000), keyframe_interval_s=0.5)
    source.start({}, sink.unit, sink.failed)
    units = sink.wait_for(60)
    source.stop()
    assert max(len(unit.payload) for unit in units if unit.keyframe) * 8 <= 200_000 / 2


@pytest.mark.slow
def test_a_lower_bitrate_makes_fewer_bytes_without_a_keyframe(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera(plan(640, 360, 2_000_000), keyframe_interval_s=60)
    source.start({}, sink.unit, sink.failed)
    before = sum(len(unit.payload) for unit in sink.wait_for(60)[30:])
    source.set_bitrate(Quality.HD, 100_000)
    units = sink.wait_for(210)
    source.stop()
    assert sum(len(unit.payload) for unit in units[180:]) < before
    assert [unit.keyframe for unit in units[1:]] == [False] * 209


def test_sd_is_encoded_while_requested_and_hd_goes_on(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera()
    opening = source.start({}, sink.unit, sink.failed)
    assert opening.qualities == (Quality.HD, Quality.SD)
    sink.wait_for(5)
    assert not sink.of(Quality.SD)
    for _ in range(2):
        earlier = len(sink.of(Quality.SD))
        source.encode_sd(on=True)
        source.encode_sd(on=True)
        units = sink.wait_for(earlier + 10, Quality.SD)[earlier:]
        source.encode_sd(on=False)
        source.encode_sd(on=False)
        count = len(sink.of(Quality.SD))
        sink.wait_for(len(sink.of(Quality.HD)) + 10)
        assert len(sink.of(Quality.SD)) == count
        assert units[0].keyframe
        assert {(frame.width, frame.height) for frame in pictures(units)} == {(160, 120)}
    # A picture has the same timestamp in both qualities, whenever its encoder was started.
    assert {unit.captured_ns for unit in units} <= {unit.captured_ns for unit in sink.of(Quality.HD)}
    source.stop()
    hd = sink.of(Quality.HD)
    assert [frame.pts for frame in pictures(hd)] == list(range(len(hd)))


def no_second_encoder(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """From here on, the encoder of SD cannot be opened."""
    if kind == "picamera2":
        monkeypatch.setattr("picamera2.Picamera2.start_encoder", broken)
    elif kind == "synthetic":
        monkeypatch.setattr("edge.camera.synthetic.VideoCodecContext.create", broken)


def broken(*_: object, **__: object) -> None:
    raise ValueError("no memory for another encoder")


@pytest.mark.parametrize("kind", [*CAMERAS, "h264"])
def test_sd_that_cannot_be_encoded_is_camera_unavailable_and_hd_goes_on(
    kind: str, recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CAMERAS[kind]() if kind in CAMERAS else FileSource(recordings[kind], FPS)
    sink = Sink()
    source.start({}, sink.unit, sink.failed)
    try:
        no_second_encoder(monkeypatch, kind)
        with pytest.raises(CameraUnavailable):
            source.encode_sd(on=True)
        sink.wait_for(len(sink.units) + 10)
        source.encode_sd(on=False)
        monkeypatch.undo()
        if kind in CAMERAS:
            source.encode_sd(on=True)
            sink.wait_for(3, Quality.SD)
    finally:
        source.stop()
    assert not sink.failures


def test_sd_that_fails_later_is_reported_once_and_hd_goes_on() -> None:
    source = synthetic()
    sink, sd_failures = Sink(), Sink()
    source.start({}, sink.unit, sink.failed)
    source.encode_sd(on=True, failed=sd_failures.failed)
    sink.wait_for(3, Quality.SD)
    assert isinstance(source, SyntheticSource)
    source._encoders[Quality.SD].encode = broken  # type: ignore[assignment,method-assign]
    sink.wait_for(len(sink.of(Quality.HD)) + 10)
    source.stop()
    assert sd_failures.failures == ["the encoder failed: no memory for another encoder"]


def test_sd_may_have_half_the_frame_rate(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera(plan(), plan(160, 120, 200_000, fps=FPS // 2))
    source.start({}, sink.unit, sink.failed)
    source.encode_sd(on=True)
    stamps = [unit.captured_ns for unit in sink.wait_for(20, Quality.SD)]
    source.stop()
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    assert steps[len(steps) // 2] == pytest.approx(2e9 / FPS, rel=0.3)


def test_the_frame_rate_changes_while_it_runs(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera()
    opening = source.start({}, sink.unit, sink.failed)
    assert (opening.offered["fps"].highest, opening.offered["fps"].default) == (FPS, FPS)
    sink.wait_for(10)
    source.set_controls({"fps": 10})
    before = len(sink.units) + 8  # pictures already in the camera
    stamps = [unit.captured_ns for unit in sink.wait_for(before + 10)[before:]]
    source.set_controls({"fps": None})
    source.stop()
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    assert steps[len(steps) // 2] == pytest.approx(1e9 / 10, rel=0.3)
    units = sink.units
    assert [frame.pts for frame in pictures(units)] == list(range(len(units)))


def test_saved_controls_apply_when_it_opens(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera()
    opening = source.start({"fps": 10, "control of another camera": 1}, sink.unit, sink.failed)
    stamps = [unit.captured_ns for unit in sink.wait_for(12)[2:]]
    source.stop()
    assert opening.values == {"fps": 10}
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    assert steps[len(steps) // 2] == pytest.approx(1e9 / 10, rel=0.3)


@pytest.mark.parametrize(("width", "size"), [(None, (WIDTH, HEIGHT)), (160, (160, 120)), (1920, (WIDTH, HEIGHT))])
def test_a_snapshot_leaves_no_gap(make_camera: Callable[..., Source], width: int | None, size: tuple[int, int]) -> None:
    sink = Sink()
    source = make_camera()
    source.start({}, sink.unit, sink.failed)
    sink.wait_for(10)
    jpeg = source.snapshot(width, 80)
    units = sink.wait_for(len(sink.units) + 10)
    source.stop()
    container = av.open(io.BytesIO(jpeg), "r")
    frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == size
    # The same picture as in the video, judged by its brightness.
    shown = pictures(units)[-1].reformat(*size, "gray").to_ndarray().mean()
    assert frame.reformat(format="gray").to_ndarray().mean() == pytest.approx(shown, abs=12)
    steps = [later.captured_ns - earlier.captured_ns for earlier, later in itertools.pairwise(units)]
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1e9 / FPS, rel=0.3)


def test_a_flip_is_a_short_break_in_a_stream_that_still_decodes(make_camera: Callable[..., Source]) -> None:
    sink = Sink()
    source = make_camera()
    source.start({}, sink.unit, sink.failed)
    source.encode_sd(on=True)
    sink.wait_for(5, Quality.SD)
    source.set_controls({"flip_vertical": True, "flip_horizontal": True})
    for quality in Quality:
        sink.wait_for(len(sink.of(quality)) + 10, quality)
    source.set_controls({"flip_vertical": None})
    for quality in Quality:
        sink.wait_for(len(sink.of(quality)) + 10, quality)
    source.stop()
    for quality in Quality:
        units = sink.of(quality)
        assert [frame.pts for frame in pictures(units)] == list(range(len(units)))
        steps = [later.captured_ns - earlier.captured_ns for earlier, later in itertools.pairwise(units)]
        assert min(steps) > 0
        assert max(steps) < 1e9


def test_controls_change_the_synthetic_picture() -> None:
    source = synthetic()
    sink = Sink()
    source.start({"flip_vertical": True}, sink.unit, sink.failed)
    flipped = pictures(sink.wait_for(3))[-1].to_ndarray()[:HEIGHT]
    source.set_controls({"flip_vertical": None, "brightness": 0.3})
    upright = pictures(sink.wait_for(30))[-1].to_ndarray()[:HEIGHT]
    source.stop()
    assert block_code.read(np.asarray(flipped[::-1], np.uint8)) is not None
    assert block_code.read(np.asarray(flipped, np.uint8)) is None
    assert upright.mean() > flipped.mean() + 40


def test_the_synthetic_picture_carries_the_time_it_was_drawn() -> None:
    before_ms = time.time_ns() // 1_000_000
    units = played(synthetic(), 10)
    after_ms = time.time_ns() // 1_000_000
    codes = [block_code.read(np.asarray(frame.to_ndarray()[:HEIGHT], np.uint8)) for frame in pictures(units)]
    read = [code for code in codes if code is not None]
    assert len(read) == 10
    assert read == sorted(read)
    assert all((code - before_ms) % 2**32 <= after_ms - before_ms for code in read)


def test_a_recording_that_begins_in_the_middle_starts_at_its_first_keyframe(tmp_path: Path) -> None:
    units = played(FileSource(record(tmp_path / "cut.ts", skip=3), FPS), RECORDED_PICTURES)
    assert units[0].keyframe
    # Ten pictures from the second keyframe on, then the loop.
    assert [number for number, unit in enumerate(units) if unit.keyframe] == [0, 10]


def test_parameter_sets_from_the_start_are_repeated_at_each_keyframe(
    tmp_path: Path, recordings: dict[str, Path]
) -> None:
    payload = recordings["h264"].read_bytes()
    nals = split_annexb(payload)
    sets = [nal for nal in nals if nal_type(nal) in {7, 8}]
    rest = [nal for nal in nals if nal_type(nal) not in {7, 8}]
    path = tmp_path / "once.h264"
    path.write_bytes(b"".join(b"\x00\x00\x00\x01" + nal for nal in [*sets[:2], *rest]))
    units = played(FileSource(path, FPS), RECORDED_PICTURES)
    assert [number for number, unit in enumerate(units) if is_keyframe(unit.payload)] == [0, 10]


@pytest.mark.parametrize("kind", ["h264", "ts", "mp4"])
def test_b_frames_are_rejected(tmp_path: Path, kind: str) -> None:
    assert_rejected(record(tmp_path / f"b.{kind}", b_frames=2), "B-frames")


def test_a_file_that_is_not_an_h264_recording_is_rejected(tmp_path: Path, recordings: dict[str, Path]) -> None:
    assert_rejected(tmp_path / "missing.mp4", "no such file")
    (tmp_path / "text.mp4").write_text("not a video")
    assert_rejected(tmp_path / "text.mp4", "cannot be read")
    assert_rejected(record(tmp_path / "other.mp4", codec="mpeg4"), "no H.264")
    nals = split_annexb(recordings["h264"].read_bytes())
    bodies = [nal for nal in nals if nal_type(nal) != 5]
    (tmp_path / "none.h264").write_bytes(b"".join(b"\x00\x00\x00\x01" + nal for nal in bodies))
    assert_rejected(tmp_path / "none.h264", "no keyframe")


def assert_rejected(path: Path, cause: str) -> None:
    sink = Sink()
    with pytest.raises(CameraUnavailable, match=cause):
        FileSource(path, FPS).start({}, sink.unit, sink.failed)
    assert not sink.units
