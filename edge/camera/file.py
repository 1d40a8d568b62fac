"""A source that plays a recording of real H.264, for ever, as if it were captured now."""

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
from edge.camera.port import Opening
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
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from av.packet import Packet
    from av.video.stream import VideoStream

    from edge.core.access_unit import Quality
    from edge.core.camera_controls import Values

log = logging.getLogger(__name__)

_SETS = {NAL_SPS, NAL_PPS}
_PROBED_UNITS = 300
"""How far into the recording it is checked before the first picture is shown; the rest is checked as it plays."""
_LATE_NS = 500_000_000
"""Behind by more than this (the process was stopped), the clock of the recording is moved instead of rushing."""


class FileSource:
    """Loops a file at its own pace, on its own thread; timestamps run on over the seam.

    `fps` is for a recording without timestamps (raw .h264). It has no encoder: `request_keyframe` and
    `set_bitrate` do nothing, a viewer waits for the recording's next keyframe, and a snapshot is its first picture.
    """

    name = "file"

    def __init__(self, path: Path, fps: int) -> None:
        self._path = path
        self._fps = fps
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, values: Values, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> Opening:  # noqa: ARG002  a recording has no controls
        opening = Opening(self._checked())
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, args=(sink, failed), name="file")
        self._thread.start()
        return opening

    def stop(self) -> None:
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None

    def encode_sd(self, *, on: bool, failed: Callable[[str], None] = lambda _: None) -> None:  # noqa: ARG002
        if on:
            raise CameraUnavailable("a recording has one quality")

    def request_keyframe(self, quality: Quality) -> None:
        """Do nothing."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Do nothing."""

    def set_controls(self, values: Values) -> None:
        """Do nothing: none is offered."""

    def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        with contextlib.suppress(av.FFmpegError, OSError), av.open(str(self._path)) as container:
            for frame in container.decode(video=0):
                return encode_jpeg(frame, width, jpeg_quality)
        raise CameraUnavailable(f"{self._path}: no picture can be decoded")

    def _checked(self) -> StreamFormat:
        recording = _Recording(self._path, self._fps)
        with contextlib.closing(recording.units()) as units:
            _, first, _ = next(units)
            for _ in itertools.islice(units, _PROBED_UNITS):
                pass
        sps = next(nal for nal in split_annexb(first) if nal_type(nal) == NAL_SPS)
        return StreamFormat(recording.width, recording.height, recording.fps, profile_level_id(sps), "file")

    def _run(self, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]) -> None:
        begun_ns = time.monotonic_ns()
        try:
            while True:
                recording = _Recording(self._path, self._fps)
                for at_ns, payload, keyframe in recording.units():
                    late_ns = time.monotonic_ns() - (begun_ns + at_ns)
                    if late_ns > _LATE_NS:
                        begun_ns += late_ns
                    elif self._ending.wait(max(0, -late_ns) / 1e9):
                        return
                    sink(AccessUnit(payload, begun_ns + at_ns, keyframe))
                begun_ns += recording.played_ns
        except CameraUnavailable as exc:
            failed(exc.message)
        except Exception as exc:
            log.exception("a bug in the recording's player")
            failed(f"{type(exc).__name__}: {exc}")


class _Recording:
    """One pass through the file. `played_ns` is how long what was read so far lasts."""

    def __init__(self, path: Path, fps: int) -> None:
        if not path.is_file():
            raise CameraUnavailable(f"{path}: there is no such file")
        self._path = path
        self.played_ns = 0
        self._sets: list[bytes] = []
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as exc:
            raise CameraUnavailable(f"{path}: cannot be read as a video: {exc}") from exc
        stream = next(iter(self._container.streams.video), None)
        if stream is None or stream.codec_context.name != "h264":
            self._container.close()
            raise CameraUnavailable(f"{path}: has no H.264 video")
        self._stream: VideoStream = stream
        # Raw H.264: the demuxer makes up 25 pictures a second.
        self._raw = self._container.format.name == "h264"
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self.fps = float(fps if self._raw else stream.average_rate or fps)

    def units(self) -> Generator[tuple[int, bytes, bool], None, None]:
        """Access units from the first keyframe on: nanoseconds from there, payload, keyframe or not.

        Raises: CameraUnavailable: cannot be shown, with the cause in words.
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
        at_ns = -1
        for number, packet in enumerate(self._packets()):
            nals, keyframe = self._complete(split_annexb(bytes(packet)))
            pts = None if self._raw else packet.pts
            when_ns = number * frame_ns if pts is None else int(pts * packet.time_base * 1_000_000_000)
            if first_ns is None:
                if not keyframe:
                    continue
                first_ns = when_ns
            if when_ns - first_ns <= at_ns or (pts is None and any(map(is_b_slice, nals))):
                raise CameraUnavailable(f"{self._path}: has B-frames, which browsers cannot show")
            at_ns = when_ns - first_ns
            self.played_ns = at_ns + frame_ns
            yield at_ns, join_annexb(nals), keyframe

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Annex-B, whatever the file has."""
        extradata = self._stream.codec_context.extradata
        if extradata is None or extradata[:1] != b"\x01":
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
            return
        annexb = BitStreamFilterContext("h264_mp4toannexb", self._stream)
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield from annexb.filter(packet)

    def _complete(self, nals: list[bytes]) -> tuple[list[bytes], bool]:
        """The NAL units, with SPS and PPS in front of an IDR picture; and whether it is a keyframe."""
        kinds = {nal_type(nal) for nal in nals}
        sets = [nal for nal in nals if nal_type(nal) in _SETS]
        if NAL_SPS in kinds:
            self._sets = sets
        else:
            self._sets += [nal for nal in sets if nal not in self._sets]
        if NAL_IDR not in kinds:
            return nals, False
        if not kinds >= _SETS:
            # An access unit delimiter comes first where there is one.
            at = nal_type(nals[0]) == NAL_AUD
            nals = [*nals[:at], *self._sets, *(nal for nal in nals[at:] if nal not in sets)]
        return nals, {nal_type(nal) for nal in self._sets} == _SETS
