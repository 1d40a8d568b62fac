"""What every source keeps to, held against the synthetic one and against recordings of each kind."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from edge.camera import block_code
from edge.camera.file import FileSource
from edge.camera.synthetic import SyntheticSource
from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import NAL_SPS, is_keyframe, nal_type, profile_level_id, split_annexb
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from edge.camera.port import Source

FPS = 30
RECORDED_PICTURES = 20
WIDTH, HEIGHT = 320, 240
GENEROUS_S = 20.0


@dataclass
class Sink:
    """Collects, and lets a test wait for so many."""

    units: list[AccessUnit] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _more: threading.Condition = field(default_factory=threading.Condition)

    def unit(self, unit: AccessUnit) -> None:
        with self._more:
            self.units.append(unit)
            self._more.notify_all()

    def failed(self, message: str) -> None:
        with self._more:
            self.failures.append(message)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[AccessUnit]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.units) >= count or self.failures, GENEROUS_S)
        assert not self.failures
        return self.units[:count]


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


@pytest.fixture(params=["synthetic", "h264", "ts", "mp4"])
def source(request: pytest.FixtureRequest, recordings: dict[str, Path]) -> Source:
    if request.param == "synthetic":
        return SyntheticSource(WIDTH, HEIGHT, FPS, 1_000_000, 10)
    return FileSource(recordings[request.param], FPS)


def played(source: Source, count: int) -> list[AccessUnit]:
    sink = Sink()
    source.start(sink.unit, sink.failed)
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


def test_the_format_tells_the_truth(source: Source) -> None:
    sink = Sink()
    told = source.start(sink.unit, sink.failed)
    first = sink.wait_for(1)[0]
    source.stop()
    sps = next(nal for nal in split_annexb(first.payload) if nal_type(nal) == NAL_SPS)
    assert told.profile_level_id == profile_level_id(sps)
    assert (told.width, told.height, told.fps) == (WIDTH, HEIGHT, FPS)


def test_timestamps_increase_at_the_rate_of_the_pictures_over_the_seam(source: Source) -> None:
    begun_ns = time.monotonic_ns()
    units = played(source, 2 * RECORDED_PICTURES + 5)
    stamps = [unit.captured_ns for unit in units]
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    assert begun_ns <= stamps[0]
    assert stamps[-1] <= time.monotonic_ns()
    assert min(steps) > 0
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1e9 / FPS, rel=0.3)


def test_stop_is_final_and_start_works_again(source: Source) -> None:
    source.stop()
    for _ in range(2):
        sink = Sink()
        source.start(sink.unit, sink.failed)
        sink.wait_for(3)
        source.stop()
        count = len(sink.units)
        source.stop()
        assert not {"synthetic", "file"} & {thread.name for thread in threading.enumerate()}
        assert sink.units[0].keyframe
        assert len(sink.units) == count
        assert not sink.failures


def test_orders_are_taken_while_it_runs(source: Source) -> None:
    sink = Sink()
    source.start(sink.unit, sink.failed)
    source.request_keyframe(Quality.HD)
    source.set_bitrate(Quality.HD, 300_000)
    sink.wait_for(RECORDED_PICTURES)
    source.stop()


def test_the_synthetic_source_makes_a_keyframe_on_request() -> None:
    source = SyntheticSource(WIDTH, HEIGHT, FPS, 1_000_000, 60)
    sink = Sink()
    source.start(sink.unit, sink.failed)
    before = len(sink.wait_for(5))
    source.request_keyframe(Quality.HD)
    asked_at = len(sink.units)
    units = sink.wait_for(asked_at + 5)
    source.stop()
    assert [unit.keyframe for unit in units[1:before]] == [False] * (before - 1)
    assert sum(unit.keyframe for unit in units[asked_at : asked_at + 5]) == 1


def test_the_synthetic_source_is_constrained_baseline_at_the_level_it_needs() -> None:
    sink = Sink()
    source = SyntheticSource(1280, 720, FPS, 2_000_000, 10)
    told = source.start(sink.unit, sink.failed)
    source.stop()
    profile_idc, constraints, level_idc = bytes.fromhex(told.profile_level_id)
    assert profile_idc == 66
    assert constraints & 0x40
    assert level_idc == 31


def test_keyframes_stay_within_the_rate_buffer() -> None:
    sink = Sink()
    source = SyntheticSource(640, 360, FPS, 200_000, 0.5)
    source.start(sink.unit, sink.failed)
    units = sink.wait_for(60)
    source.stop()
    assert max(len(unit.payload) for unit in units if unit.keyframe) * 8 <= 200_000 / 2


def test_a_lower_bitrate_makes_less_without_a_keyframe() -> None:
    sink = Sink()
    source = SyntheticSource(640, 360, FPS, 2_000_000, 60)
    source.start(sink.unit, sink.failed)
    before = sum(len(unit.payload) for unit in sink.wait_for(60)[30:])
    source.set_bitrate(Quality.HD, 100_000)
    units = sink.wait_for(210)
    source.stop()
    assert sum(len(unit.payload) for unit in units[180:]) < before
    assert [unit.keyframe for unit in units[1:]] == [False] * 209


def test_the_synthetic_picture_carries_the_time_it_was_drawn() -> None:
    before_ms = time.time_ns() // 1_000_000
    units = played(SyntheticSource(WIDTH, HEIGHT, FPS, 1_000_000, 10), 10)
    after_ms = time.time_ns() // 1_000_000
    codes = [block_code.read(np.asarray(frame.to_ndarray()[:HEIGHT], np.uint8)) for frame in pictures(units)]
    read = [code for code in codes if code is not None]
    assert len(read) == 10
    assert read == sorted(read)
    assert all((code - before_ms) % 2**32 <= after_ms - before_ms for code in read)


def test_a_recording_that_begins_in_the_middle_starts_at_its_first_keyframe(tmp_path: Path) -> None:
    units = played(FileSource(record(tmp_path / "cut.ts", skip=3), FPS), RECORDED_PICTURES)
    assert units[0].keyframe
    # Ten pictures from the second keyframe on, then the seam.
    assert [number for number, unit in enumerate(units) if unit.keyframe] == [0, 10]


def test_parameter_sets_only_at_the_start_are_repeated(tmp_path: Path, recordings: dict[str, Path]) -> None:
    payload = recordings["h264"].read_bytes()
    nals = split_annexb(payload)
    sets = [nal for nal in nals if nal_type(nal) in {7, 8}]
    rest = [nal for nal in nals if nal_type(nal) not in {7, 8}]
    path = tmp_path / "once.h264"
    path.write_bytes(b"".join(b"\x00\x00\x00\x01" + nal for nal in [*sets[:2], *rest]))
    units = played(FileSource(path, FPS), RECORDED_PICTURES)
    assert [number for number, unit in enumerate(units) if is_keyframe(unit.payload)] == [0, 10]


@pytest.mark.parametrize("kind", ["h264", "ts", "mp4"])
def test_b_frames_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    refused(record(tmp_path / f"b.{kind}", b_frames=2), "B-frames")


def test_what_is_no_h264_recording_is_refused_in_words(tmp_path: Path, recordings: dict[str, Path]) -> None:
    refused(tmp_path / "missing.mp4", "no such file")
    (tmp_path / "text.mp4").write_text("not a video")
    refused(tmp_path / "text.mp4", "cannot be read")
    refused(record(tmp_path / "other.mp4", codec="mpeg4"), "no H.264")
    nals = split_annexb(recordings["h264"].read_bytes())
    bodies = [nal for nal in nals if nal_type(nal) != 5]
    (tmp_path / "none.h264").write_bytes(b"".join(b"\x00\x00\x00\x01" + nal for nal in bodies))
    refused(tmp_path / "none.h264", "no keyframe")


def refused(path: Path, words: str) -> None:
    sink = Sink()
    with pytest.raises(CameraUnavailable, match=words):
        FileSource(path, FPS).start(sink.unit, sink.failed)
    assert not sink.units
