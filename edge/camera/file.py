"""A source that plays an H.264 recording in a loop, as if it were captured now."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

import av
from av.bitstream import BitStreamFilterContext

from edge.camera.jpeg import encode_jpeg
from edge.camera.port import CameraMissing, Opening
from edge.core.access_unit import AccessUnit, StreamFormat
from edge.core.annexb import (
    NAL_AUD,
    NAL_IDR,
    NAL_PPS,
    NAL_SPS,
    BadBitstream,
    is_b_slice,
    join_annexb,
    nal_type,
    profile_level_id,
    split_annexb,
)
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from av.packet import Packet
    from av.video.stream import VideoStream

    from edge.camera.port import OnFailed, Sink
    from edge.core.access_unit import Quality
    from edge.core.camera_controls import ControlValues

log = logging.getLogger(__name__)

_PARAMETER_SETS = {NAL_SPS, NAL_PPS}
_CHECKED_UNITS = 300
"""How many access units are checked before the recording starts. The rest is checked as it plays."""
_LATE_NS = 500_000_000
"""If playing is later than this (the process was suspended), the timestamps move instead of catching up."""


class FileSource:
    """Loops a file at its own frame rate, on its own thread. Timestamps increase across the loop.

    `fps` applies to a recording without timestamps (raw .h264). There is no encoder: `request_keyframe` and
    `set_bitrate` do nothing, a viewer waits for the next recorded keyframe, and a snapshot is the first picture.
    """

    name = "file"

    def __init__(self, path: Path, fps: int) -> None:
        self._path = path
        self._fps = fps
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def probe(self) -> None:
        self._check()

    def start(self, values: ControlValues, sink: Sink, failed: OnFailed) -> Opening:  # noqa: ARG002  it has no controls
        opening = Opening(self._check())
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(sink, failed), name="file")
        self._thread.start()
        return opening

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def encode_sd(self, *, on: bool, failed: OnFailed = lambda _: None) -> None:  # noqa: ARG002
        if on:
            raise CameraUnavailable("a recording has only one quality")

    def request_keyframe(self, quality: Quality) -> None:
        """Do nothing."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Do nothing."""

    def set_controls(self, values: ControlValues) -> None:
        """Do nothing: a recording offers no controls."""

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        with contextlib.suppress(av.FFmpegError, OSError), av.open(str(self._path)) as container:
            for frame in container.decode(video=0):
                return encode_jpeg(frame, width, jpeg_quality)
        raise CameraUnavailable(f"{self._path}: no picture can be decoded")

    def _check(self) -> StreamFormat:
        recording = _Recording(self._path, self._fps)
        with contextlib.closing(recording.units()) as units:
            _, first, _ = next(units)
            for _ in itertools.islice(units, _CHECKED_UNITS):
                pass
        sps = next(nal for nal in split_annexb(first) if nal_type(nal) == NAL_SPS)
        return StreamFormat(recording.width, recording.height, recording.fps, profile_level_id(sps), "file")

    def _run(self, sink: Sink, failed: OnFailed) -> None:
        started_ns = time.monotonic_ns()
        try:
            while True:
                recording = _Recording(self._path, self._fps)
                for time_ns, payload, keyframe in recording.units():
                    late_ns = time.monotonic_ns() - (started_ns + time_ns)
                    if late_ns > _LATE_NS:
                        started_ns += late_ns
                    elif self._stopping.wait(max(0, -late_ns) / 1e9):
                        return
                    sink(AccessUnit(payload, started_ns + time_ns, keyframe))
                started_ns += recording.played_ns
        except CameraUnavailable as exc:
            failed(exc.detail)
        except Exception as exc:
            log.exception("recording player failed")
            failed(f"{type(exc).__name__}: {exc}")


class _Recording:
    """One pass through the file. `played_ns`: the duration of what was read so far."""

    def __init__(self, path: Path, fps: int) -> None:
        if not path.is_file():
            raise CameraMissing(f"{path}: no such file")
        self._path = path
        self.played_ns = 0
        self._parameter_sets: list[bytes] = []
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as exc:
            raise CameraUnavailable(f"{path}: cannot be read as a video: {exc}") from exc
        stream = next(iter(self._container.streams.video), None)
        if stream is None or stream.codec_context.name != "h264":
            self._container.close()
            raise CameraUnavailable(f"{path}: has no H.264 video")
        self._stream: VideoStream = stream
        # The demuxer assumes 25 fps for raw H.264.
        self._raw = self._container.format.name == "h264"
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self.fps = float(fps if self._raw else stream.average_rate or fps)

    def units(self) -> Generator[tuple[int, bytes, bool], None, None]:
        """Access units from the first keyframe on: time since that keyframe in nanoseconds, payload, keyframe or not.

        Raises: CameraUnavailable: the recording cannot be shown.
        """
        try:
            with self._container:
                yield from self._timed()
        except (av.FFmpegError, BadBitstream) as exc:
            raise CameraUnavailable(f"{self._path}: is damaged: {exc}") from exc
        if self.played_ns == 0:
            raise CameraUnavailable(f"{self._path}: has no keyframe")

    def _timed(self) -> Iterator[tuple[int, bytes, bool]]:
        frame_ns = round(1e9 / self.fps)
        first_ns: int | None = None
        time_ns = -1
        for number, packet in enumerate(self._packets()):
            nals, keyframe = self._complete(split_annexb(bytes(packet)))
            pts = None if self._raw else packet.pts
            pts_ns = number * frame_ns if pts is None else int(pts * packet.time_base * 1_000_000_000)
            if first_ns is None:
                if not keyframe:
                    continue
                first_ns = pts_ns
            if pts_ns - first_ns <= time_ns or (pts is None and any(map(is_b_slice, nals))):
                raise CameraUnavailable(f"{self._path}: has B-frames, which browsers cannot show")
            time_ns = pts_ns - first_ns
            self.played_ns = time_ns + frame_ns
            yield time_ns, join_annexb(nals), keyframe

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets in Annex-B format, also from a file in AVC format."""
        extradata = self._stream.codec_context.extradata
        if extradata is None or extradata[:1] != b"\x01":
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
            return
        annexb = BitStreamFilterContext("h264_mp4toannexb", self._stream)
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield from annexb.filter(packet)

    def _complete(self, nals: list[bytes]) -> tuple[list[bytes], bool]:
        """The NAL units, with SPS and PPS before an IDR picture; and whether this is a keyframe."""
        kinds = {nal_type(nal) for nal in nals}
        sets = [nal for nal in nals if nal_type(nal) in _PARAMETER_SETS]
        if NAL_SPS in kinds:
            self._parameter_sets = sets
        else:
            self._parameter_sets += [nal for nal in sets if nal not in self._parameter_sets]
        if NAL_IDR not in kinds:
            return nals, False
        if not kinds >= _PARAMETER_SETS:
            # An access unit delimiter, if there is one, stays first.
            at = nal_type(nals[0]) == NAL_AUD
            nals = [*nals[:at], *self._parameter_sets, *(nal for nal in nals[at:] if nal not in sets)]
        return nals, {nal_type(nal) for nal in self._parameter_sets} == _PARAMETER_SETS
