"""One sender under test in its own process: `python -m bench.fanout_sender KIND PORT RECORDING VIEWERS`.

Kinds: `ours`; `unsegmented`, ours without UDP segmentation in the kernel; `stock`, aiortc's own sender with ready
packets; `naive`, aiortc encoding for each viewer, like its examples; `floor`, only SRTP and one system call per 50
packets, to one reader. The sender plays the recording at 30 pictures per second. `POST /offer` accepts a viewer's
{sdp, type}. `GET /stats` returns {late_frames, dropped_frames, capture_to_send_ms} since the previous request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from pylibsrtp import Policy, Session
from pylibsrtp._binding import ffi, lib

from edge.core.access_unit import AccessUnit, Quality
from edge.core.annexb import NAL_SPS, is_keyframe, nal_type, profile_level_id, split_annexb
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.core.packetizer import packetize
from edge.streaming.hub import Hub
from edge.streaming.peer import PeerFactory
from edge.streaming.rtp_sender import RtpSender
from edge.streaming.settings import IceSettings, RtpSettings
from edge.streaming.track_sender import TrackSender

FPS = 30
FRAME_S = 1 / FPS


class Latencies:
    """The times from the capture of pictures (when they were due) until they were sent."""

    def __init__(self) -> None:
        self.sent_ms: list[float] = []
        self.late = 0

    def sent(self, captured_ns: int) -> None:
        after_ms = (time.monotonic_ns() - captured_ns) / 1e6
        self.sent_ms.append(after_ms)
        self.late += after_ms > FRAME_S * 1000

    def collect(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.sent_ms, n=100) if len(self.sent_ms) > 1 else [0.0] * 99
        stats = {"late_frames": self.late, "capture_to_send_ms": {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}}
        self.sent_ms, self.late = [], 0
        return stats


class Camera:
    """Plays the recording in place of the camera process."""

    def __init__(self, recording: Path) -> None:
        with av.open(str(recording)) as container:
            payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        self.pictures = [(payload, is_keyframe(payload)) for payload in payloads]
        sps = next(nal for nal in split_annexb(payloads[0]) if nal_type(nal) == NAL_SPS)
        profile = read_profile_level(profile_level_id(sps))
        assert profile is not None
        self.profile = profile

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...

    async def play(self, push: Any) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()

        def picture(number: int) -> None:
            loop.call_at(started_s + (number + 1) * FRAME_S, picture, number + 1)
            payload, keyframe = self.pictures[number % len(self.pictures)]
            # The capture time is the due time, so a delay of the event loop counts as latency.
            push(AccessUnit(payload, int((started_s + number * FRAME_S) * 1e9), keyframe))

        picture(0)
        await loop.create_future()


class Own(RtpSender):
    """Our sender with measured latencies."""

    latencies: Latencies

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._captured_ns: dict[int, int] = {}

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        self._captured_ns[(self._timestamp_base + pts_90k) & 0xFFFFFFFF] = unit.captured_ns
        return super().push(unit, pts_90k)

    def _send_unit(self, path: Any, outgoing: Any, buffers: Any, now_s: float) -> bool:
        finished = super()._send_unit(path, outgoing, buffers, now_s)
        if finished:
            self.latencies.sent(self._captured_ns.pop(outgoing.timestamp))
        return finished


class Unsegmented(Own):
    """Our sender when the kernel has rejected UDP segmentation."""

    def connect(self, path: Any) -> None:
        super().connect(path)
        assert path.refresh()
        path.segmentation = False


class Stock(TrackSender):
    """aiortc's sender with measured latencies: it requests a picture after it has sent the previous one."""

    latencies: Latencies
    _captured_ns = 0

    async def recv(self) -> Any:
        if self._captured_ns:
            self.latencies.sent(self._captured_ns)
        unit_at = self._lane._units[0][0].captured_ns if len(self._lane) else 0
        packet = await super().recv()
        self._captured_ns = unit_at or time.monotonic_ns()
        return packet


class Factory(PeerFactory):
    """Makes peers whose senders measure latencies."""

    kind: str

    def _sender(self) -> Any:
        if self.kind == "stock":
            return Stock()
        return (Own if self.kind == "ours" else Unsegmented)(self._packetizer, self._counters, frame_s=FRAME_S)


def fan_out(kind: str, camera: Camera) -> tuple[Any, Any, Any]:
    counters: Counter[str] = Counter()
    latencies = Latencies()
    hub = Hub(camera, time.monotonic, counters, dict.fromkeys(Quality, FRAME_S))
    Own.latencies = Stock.latencies = latencies
    factory = Factory(hub, IceSettings(), RtpSettings(), counters, frame_s=FRAME_S)
    factory.kind = kind
    peers: list[Any] = []

    async def answer(sdp: str) -> str:
        offer = read_offer(sdp)
        peer = factory(Events(), [], Quality.HD)
        peers.append(peer)
        choice = offer.choose(camera.profile)
        await peer.accept(offer, choice)
        return await peer.answer(offer, choice, trickle=False)

    def stats() -> dict[str, Any]:
        dropped = sum(peer._sender.dropped for peer in peers) + counters["frames_cut"]
        return {**latencies.collect(), "dropped_frames": dropped}

    return answer, stats, hub.push


class Events:
    """Ignores the events of peers."""

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def relay_lost(self) -> None: ...

    def failed(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


class RawTrack(VideoStreamTrack):
    """Raw 1080p pictures, which aiortc encodes for its one viewer."""

    def __init__(self, frames: list[av.VideoFrame]) -> None:
        super().__init__()
        self._frames = itertools.cycle(frames)

    async def recv(self) -> av.VideoFrame:
        pts, time_base = await self.next_timestamp()
        frame = next(self._frames)
        frame.pts, frame.time_base = pts, time_base
        return frame


def naive(recording: Path) -> tuple[Any, Any, Any]:
    with av.open(str(recording)) as container:
        frames = [frame for _, frame in zip(range(FPS), container.decode(video=0), strict=False)]
    connections: list[RTCPeerConnection] = []

    async def answer(sdp: str) -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connections.append(pc)
        pc.addTrack(RawTrack(frames))
        await pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        return str(pc.localDescription.sdp)

    return answer, lambda: {"late_frames": None, "dropped_frames": None, "capture_to_send_ms": None}, lambda _: None


class Floor:
    """The minimum work: for each viewer and picture a copy, SRTP per packet, and one system call per 50 packets."""

    def __init__(self, viewers: int) -> None:
        self._sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.bind(("127.0.0.1", 0))
        # Read the packets in a child process, because sending to a full socket costs more. It ends with this process.
        code = (
            "import ctypes, signal, socket, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
            "sink = socket.socket(fileno=int(sys.argv[1]))\nwhile True: sink.recv(2048)"
        )
        number = self._sink.fileno()
        self._reader = subprocess.Popen([sys.executable, "-c", code, str(number)], pass_fds=[number])
        os.set_blocking(self._sink.fileno(), True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        profile = Policy.SRTP_PROFILE_AEAD_AES_128_GCM  # the profile that the viewers negotiate
        self._sessions = [
            Session(Policy(key=secrets.token_bytes(28), ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile))
            for _ in range(viewers)
        ]
        self._memory = ffi.new("char[]", 256 * 1024)
        self._view = memoryview(ffi.buffer(self._memory))
        self._length = ffi.new("int *")
        self._sequence = 0
        self.latencies = Latencies()

    def push(self, unit: AccessUnit) -> None:
        payloads = packetize(unit.payload, 1140)
        packets, offsets = b"", []
        for payload in payloads:
            offsets.append((len(packets), 12 + len(payload)))
            header = b"\x80\x66" + self._sequence.to_bytes(2, "big") + bytes(8)
            packets += header + payload + bytes(16)
            self._sequence = (self._sequence + 1) & 0xFFFF
        segment = offsets[0][1] + 16
        for session in self._sessions:
            self._view[: len(packets)] = packets
            srtp = session._srtp[0]
            for offset, size in offsets:
                self._length[0] = size
                lib.srtp_protect(srtp, self._memory + offset, self._length)
            for at in range(0, len(packets), 50 * segment):
                chunk = self._view[at : min(len(packets), at + 50 * segment)]
                ancillary = [(17, 103, segment.to_bytes(2, "little"))]
                self._socket.sendmsg([chunk], ancillary, 0, self._sink.getsockname())
            self.latencies.sent(unit.captured_ns)

    def stats(self) -> dict[str, Any]:
        return {**self.latencies.collect(), "dropped_frames": 0}


async def main() -> None:
    kind, port, recording, viewers = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    camera = Camera(recording)
    answer: Any = None
    if kind == "floor":
        floor = Floor(viewers)
        stats, push = floor.stats, floor.push
    elif kind == "naive":
        answer, stats, push = naive(recording)
    else:
        answer, stats, push = fan_out(kind, camera)
    loop = asyncio.get_running_loop()

    class Handler(BaseHTTPRequestHandler):
        """Runs in a thread that sleeps between requests: the timers of a web server would count as the sender's."""

        def do_POST(self) -> None:
            sdp = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sdp"]
            answer_sdp = asyncio.run_coroutine_threadsafe(answer(sdp), loop).result(30)
            self._reply({"sdp": answer_sdp, "type": "answer"})

        def do_GET(self) -> None:
            self._reply(stats())

        def _reply(self, fields: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(fields).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()
    await camera.play(push)


if __name__ == "__main__":
    asyncio.run(main())
