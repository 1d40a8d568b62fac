"""One sender under test, as a process of its own: `python -m bench.fanout_sender KIND PORT RECORDING VIEWERS`.

Kinds: `ours`; `unsegmented`, ours where the kernel cuts nothing; `stock`, aiortc's own sender with ready packets;
`naive`, aiortc encoding for each viewer, as its examples do; `floor`, no more than SRTP and one system call a picture,
to one reader. Plays the recording at 30 pictures a second. `POST /offer` takes a viewer's {sdp, type}, `GET /stats`
tells {late_frames, dropped_frames, capture_to_send_ms} since the last time.
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


class Watch:
    """When pictures were captured (handed out) and when they had left."""

    def __init__(self) -> None:
        self.sent_ms: list[float] = []
        self.late = 0

    def sent(self, captured_ns: int) -> None:
        after_ms = (time.monotonic_ns() - captured_ns) / 1e6
        self.sent_ms.append(after_ms)
        self.late += after_ms > FRAME_S * 1000

    def take(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.sent_ms, n=100) if len(self.sent_ms) > 1 else [0.0] * 99
        told = {"late_frames": self.late, "capture_to_send_ms": {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}}
        self.sent_ms, self.late = [], 0
        return told


class Camera:
    """The recording, as the camera process would hand it over."""

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
        begun_s = loop.time()

        def picture(number: int) -> None:
            loop.call_at(begun_s + (number + 1) * FRAME_S, picture, number + 1)
            payload, keyframe = self.pictures[number % len(self.pictures)]
            # The time that it was due: a loop that is late is seen as lateness.
            push(AccessUnit(payload, int((begun_s + number * FRAME_S) * 1e9), keyframe))

        picture(0)
        await loop.create_future()


class Own(RtpSender):
    """Ours, watched."""

    watch: Watch

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._captured_ns: dict[int, int] = {}

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        self._captured_ns[(self._timestamp_base + pts_90k) & 0xFFFFFFFF] = unit.captured_ns
        return super().push(unit, pts_90k)

    def _run_out(self, path: Any, outgoing: Any, sheet: Any, now_s: float) -> bool:
        gone = super()._run_out(path, outgoing, sheet, now_s)
        if gone:
            self.watch.sent(self._captured_ns.pop(outgoing.timestamp))
        return gone


class Unsegmented(Own):
    """Where the kernel refused."""

    def connect(self, path: Any) -> None:
        super().connect(path)
        assert path.open
        path.segmentation = False


class Stock(TrackSender):
    """aiortc's, watched: it comes back for more when the one before has left."""

    watch: Watch
    _captured_ns = 0

    async def recv(self) -> Any:
        if self._captured_ns:
            self.watch.sent(self._captured_ns)
        unit_at = self._lane._units[0][0].captured_ns if len(self._lane) else 0
        packet = await super().recv()
        self._captured_ns = unit_at or time.monotonic_ns()
        return packet


class Factory(PeerFactory):
    """Of watched senders."""

    kind: str

    def _sender(self) -> Any:
        if self.kind == "stock":
            return Stock()
        return (Own if self.kind == "ours" else Unsegmented)(self._packetizer, self._counters, frame_s=FRAME_S)


def fan_out(kind: str, camera: Camera) -> tuple[Any, Any, Any]:
    counters: Counter[str] = Counter()
    watch = Watch()
    hub = Hub(camera, time.monotonic, counters, dict.fromkeys(Quality, FRAME_S))
    Own.watch = Stock.watch = watch
    factory = Factory(hub, IceSettings(), RtpSettings(), counters, frame_s=FRAME_S)
    factory.kind = kind
    peers: list[Any] = []

    async def answer(sdp: str) -> str:
        offer = read_offer(sdp)
        peer = factory(Events(), [], Quality.HD)
        peers.append(peer)
        return await peer.answer(offer, offer.choose(camera.profile), trickle=False)

    def stats() -> dict[str, Any]:
        return {**watch.take(), "dropped_frames": sum(peer._sender.dropped for peer in peers) + counters["frames_cut"]}

    return answer, stats, hub.push


class Events:
    """Nobody's."""

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


class Drawn(VideoStreamTrack):
    """Raw 1080p pictures, which aiortc then encodes for its one viewer."""

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
        pc.addTrack(Drawn(frames))
        await pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        return str(pc.localDescription.sdp)

    return answer, lambda: {"late_frames": None, "dropped_frames": None, "capture_to_send_ms": None}, lambda _: None


class Floor:
    """For each viewer and picture: a copy, SRTP for each packet, one system call for each 50 packets."""

    def __init__(self, viewers: int) -> None:
        self._sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.bind(("127.0.0.1", 0))
        # Somebody has to read: a full socket costs the one who sends more. It ends with us.
        code = (
            "import ctypes, signal, socket, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
            "sink = socket.socket(fileno=int(sys.argv[1]))\nwhile True: sink.recv(2048)"
        )
        number = self._sink.fileno()
        self._reader = subprocess.Popen([sys.executable, "-c", code, str(number)], pass_fds=[number])
        os.set_blocking(self._sink.fileno(), True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        profile = Policy.SRTP_PROFILE_AEAD_AES_128_GCM  # what the viewers agree on
        self._sessions = [
            Session(Policy(key=secrets.token_bytes(28), ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile))
            for _ in range(viewers)
        ]
        self._memory = ffi.new("char[]", 256 * 1024)
        self._view = memoryview(ffi.buffer(self._memory))
        self._length = ffi.new("int *")
        self._sequence = 0
        self.watch = Watch()

    def push(self, unit: AccessUnit) -> None:
        payloads = packetize(unit.payload, 1140)
        sheet, offsets = b"", []
        for payload in payloads:
            offsets.append((len(sheet), 12 + len(payload)))
            header = b"\x80\x66" + self._sequence.to_bytes(2, "big") + bytes(8)
            sheet += header + payload + bytes(16)
            self._sequence = (self._sequence + 1) & 0xFFFF
        segment = offsets[0][1] + 16
        for session in self._sessions:
            self._view[: len(sheet)] = sheet
            srtp = session._srtp[0]
            for offset, size in offsets:
                self._length[0] = size
                lib.srtp_protect(srtp, self._memory + offset, self._length)
            for at in range(0, len(sheet), 50 * segment):
                some = self._view[at : min(len(sheet), at + 50 * segment)]
                ancillary = [(17, 103, segment.to_bytes(2, "little"))]
                self._socket.sendmsg([some], ancillary, 0, self._sink.getsockname())
            self.watch.sent(unit.captured_ns)

    def stats(self) -> dict[str, Any]:
        return {**self.watch.take(), "dropped_frames": 0}


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

    class Door(BaseHTTPRequestHandler):
        """A thread that sleeps until it is asked: a web server's own clock would be counted as the sender's."""

        def do_POST(self) -> None:
            sdp = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sdp"]
            answered = asyncio.run_coroutine_threadsafe(answer(sdp), loop).result(30)
            self._tell({"sdp": answered, "type": "answer"})

        def do_GET(self) -> None:
            self._tell(stats())

        def _tell(self, told: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_: Any) -> None: ...

    door = ThreadingHTTPServer(("127.0.0.1", port), Door)
    threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()
    await camera.play(push)


if __name__ == "__main__":
    asyncio.run(main())
