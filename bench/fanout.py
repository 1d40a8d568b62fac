"""Benchmark of the sender's processor time per viewer: `./dev bench fanout [--json FILE] [--quick]`.

All viewers get the same recording, 1080p30 at 4 Mbit/s, and run in another process. The senders are: this project's
(ours); ours without UDP segmentation in the kernel, as with a Wi-Fi chip without checksum offload (unsegmented);
aiortc's own sender with ready packets (stock); aiortc encoding for each viewer (naive); only SRTP and the system calls
(floor); Janus; pion. The senders take turns, and the median of three turns counts. `cpu_ms_per_viewer_s` covers the
whole process, so with one viewer it includes the fixed cost. The last line of the table is the cost of each further
viewer. The last measurement is ours with 50 viewers at 2 Mbit/s on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from edge.core.packetizer import packetize
from tests.rigs.daemon import free_port
from tests.rigs.go_program import build

if TYPE_CHECKING:
    from collections.abc import Iterator

PEERS = Path(__file__).parent / "peers"
WIDTH, HEIGHT, FPS, BPS, SECONDS = 1920, 1080, 30, 4_000_000, 4
NARROW_BPS = 2_000_000
VIEWERS, TURNS = (1, 5, 10, 25, 50), 3
MEASURED_S = 4.0
SENDERS = ("ours", "stock", "naive", "floor", "janus", "pion", "unsegmented")
JANUS_PORT_RTP = 5104


def record(path: Path, bps: int = BPS) -> None:
    """Record a moving texture, for which the encoder uses its full bitrate in every picture."""
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT // 2 + 128, WIDTH // 2 + 256), np.uint8)
    texture = noise.repeat(2, axis=0).repeat(2, axis=1)
    options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "maxrate": str(bps * 6 // 5),  # the encoder stays below its limit
        "bufsize": str(bps // 4),
        "g": str(FPS * SECONDS),
        "x264-params": "slices=1:aud=1:repeat-headers=1",
    }
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", bps * 6 // 5
        stream.codec_context.thread_count = 1
        for number in range(FPS * SECONDS):
            plane = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            plane[:HEIGHT] = texture[number * 2 : number * 2 + HEIGHT, number * 3 : number * 3 + WIDTH]
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def cpu_s(pid: int) -> float:
    """Processor time of a process in nanosecond resolution. Ticks of 10 ms would be too coarse here."""
    return time.clock_gettime((~pid << 3) | 2)  # include/linux/posix-timers.h: CPUCLOCK_SCHED of a process


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024, 1)


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        list(map(str, command)), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def wait_until_listening(port: int) -> None:
    for _ in range(400):
        with (
            contextlib.suppress(OSError),
            contextlib.closing(socket.create_connection(("127.0.0.1", port), 1)),
        ):
            return
        time.sleep(0.05)
    raise TimeoutError(port)


class Bench:
    """Build the peers once, and measure a row of figures for each sender and number of viewers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.recording, self.narrow = directory / "recording.h264", directory / "narrow.h264"
        print("creating the recordings and building the peers", file=sys.stderr)
        record(self.recording)
        record(self.narrow, NARROW_BPS)
        self._viewers, self._pion = build(PEERS / "viewers", directory), build(PEERS / "pion", directory)

    def on_one_core(self) -> dict[str, Any]:
        """Measure ours on one core with 50 viewers at 2 Mbit/s. The viewers use the other cores."""
        port, core = free_port(), str(min(os.sched_getaffinity(0)))
        arguments = (sys.executable, "-m", "bench.fanout_sender", "ours", str(port), self.narrow, "50")
        with running("taskset", "--cpu-list", core, *arguments) as process:
            wait_until_listening(port)
            with self._run_viewers(50, "-url", f"http://127.0.0.1:{port}/offer") as viewer_process:
                row = self._measure("ours", 50, process.pid, port, viewer_process)
        return {**row, "sender": "ours_one_core", "bitrate_bps": NARROW_BPS}

    def row(self, sender: str, viewers: int) -> dict[str, Any]:
        port = free_port()
        if sender == "janus":
            return self._janus(viewers, port)
        command: tuple[str | Path, ...] = (
            (self._pion, str(port), self.recording)
            if sender == "pion"
            else (sys.executable, "-m", "bench.fanout_sender", sender, str(port), self.recording, str(viewers))
        )
        with running(*command) as process:
            wait_until_listening(port)
            if sender == "floor":
                time.sleep(1)
                return self._measure(sender, viewers, process.pid, port, None)
            with self._run_viewers(viewers, "-url", f"http://127.0.0.1:{port}/offer") as viewer_process:
                return self._measure(sender, viewers, process.pid, port if sender != "pion" else None, viewer_process)

    def _janus(self, viewers: int, port: int) -> dict[str, Any]:
        config = self._directory / "janus"
        shutil.rmtree(config, ignore_errors=True)
        config.mkdir()
        (config / "janus.jcfg").write_text('general: { debug_level = 1 }\nnat: { ice_enforce_list = "127.0.0.1,lo" }\n')
        (config / "janus.transport.http.jcfg").write_text(
            f'general: {{ http = true\n port = {port}\n ip = "127.0.0.1" }}\nadmin: {{ admin_http = false }}\n'
        )
        (config / "janus.plugin.streaming.jcfg").write_text(
            f'one: {{ type = "rtp"\n id = 1\n media = ({{ type = "video"\n mid = "v"\n port = {JANUS_PORT_RTP}\n'
            f' pt = 102\n codec = "h264"\n fmtp = "profile-level-id=42e01f;packetization-mode=1" }}) }}\n'
        )
        feeder = (sys.executable, "-m", "bench.fanout", "--feed", str(JANUS_PORT_RTP), str(self.recording))
        with running("janus", "-F", config, "-o") as process, running(*feeder):
            wait_until_listening(port)
            with self._run_viewers(viewers, "-janus", f"http://127.0.0.1:{port}/janus") as viewer_process:
                return self._measure("janus", viewers, process.pid, None, viewer_process)

    @contextlib.contextmanager
    def _run_viewers(self, viewers: int, *source: str) -> Iterator[subprocess.Popen[str]]:
        with running(self._viewers, "-n", str(viewers), *source) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n", "the viewers got no picture"
            time.sleep(0.5)
            yield process

    def _measure(
        self, sender: str, viewers: int, pid: int, port: int | None, viewer_process: subprocess.Popen[str] | None
    ) -> dict[str, Any]:
        def stats() -> dict[str, Any]:
            if port is None:
                return {"late_frames": None, "dropped_frames": None, "capture_to_send_ms": None}
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
                sent: dict[str, Any] = json.load(answer)
                return sent

        def received() -> dict[str, int]:
            if viewer_process is None:
                return {"frames": 0, "silent": 0}
            assert viewer_process.stdin is not None
            assert viewer_process.stdout is not None
            viewer_process.stdin.write("\n")
            viewer_process.stdin.flush()
            counts: dict[str, int] = json.loads(viewer_process.stdout.readline())
            return counts

        stats()
        received()
        started_s, before_s = time.monotonic(), cpu_s(pid)
        time.sleep(MEASURED_S)
        used_s, elapsed_s = cpu_s(pid) - before_s, time.monotonic() - started_s
        sent, counts = stats(), received()
        return {
            "sender": sender,
            "viewers": viewers,
            "cpu_ms_per_viewer_s": round(1000 * used_s / elapsed_s / viewers, 2),
            **sent,
            "rss_mb": rss_mb(pid),
            "received_fps": round(counts["frames"] / elapsed_s / viewers, 1) if viewer_process else None,
            "silent_viewers": counts["silent"],
        }


def feed(port: int, recording: Path) -> None:
    """Send the recording as plain RTP to Janus."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with av.open(str(recording)) as container:
        pictures = [packetize(bytes(packet), 1140) for packet in container.demux(video=0) if packet.size]
    started_s, sequence, number = time.monotonic(), 0, 0
    while True:
        time.sleep(max(0.0, started_s + number / FPS - time.monotonic()))
        payloads = pictures[number % len(pictures)]
        for at, payload in enumerate(payloads):
            head = bytes([0x80, 102 | (0x80 if at == len(payloads) - 1 else 0)]) + sequence.to_bytes(2, "big")
            stamp = (number * 90_000 // FPS) & 0xFFFFFFFF
            out.sendto(head + stamp.to_bytes(4, "big") + b"edge" + payload, ("127.0.0.1", port))
            sequence = (sequence + 1) & 0xFFFF
        number += 1


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The turn with the median cost."""
    return sorted(rows, key=lambda row: float(row["cpu_ms_per_viewer_s"]))[len(rows) // 2]


def report(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'sender':8}{'viewers':>8}{'cpu ms':>9}{'late':>6}{'dropped':>9}"
        f"{'p50 ms':>8}{'p99 ms':>8}{'rss MB':>8}{'fps':>6}"
    )
    for row in rows:
        delay = row["capture_to_send_ms"] or {"p50": "", "p99": ""}
        late, dropped = (row[name] if row[name] is not None else "" for name in ("late_frames", "dropped_frames"))
        print(
            f"{row['sender']:8}{row['viewers']:8}{row['cpu_ms_per_viewer_s']:9}{late:>6}{dropped:>9}"
            f"{delay['p50']:>8}{delay['p99']:>8}{row['rss_mb']:8}{row['received_fps'] or '':>6}"
        )
    cost = {(row["sender"], row["viewers"]): row["cpu_ms_per_viewer_s"] for row in rows}
    ten = {sender: cost[sender, 10] for sender in SENDERS if (sender, 10) in cost}
    if "ours" not in ten:
        return
    print("\nours at 10 viewers:", ", ".join(f"{ten['ours'] / ten[one]:.2f} of {one}" for one in ten if one != "ours"))
    if ("naive", 1) in cost:
        print(f"ours at 10 viewers against naive at 1: {ten['ours'] / cost['naive', 1]:.4f}")
    marginal = {
        one: (50 * cost[one, 50] - 10 * cost[one, 10]) / 40
        for one in ("ours", "unsegmented", "stock", "floor", "janus", "pion")
        if (one, 50) in cost and (one, 10) in cost
    }
    memory = {one: row["rss_mb"] for one in SENDERS for row in rows if (row["sender"], row["viewers"]) == (one, 50)}
    for row in rows:
        if row["viewers"] == 10 and row["sender"] in marginal:
            print(f"{row['sender']}: {(memory[row['sender']] - row['rss_mb']) / 40:.2f} MB per further viewer")
    print("cpu per further viewer, from 10 to 50:", ", ".join(f"{one} {ms:.2f} ms" for one, ms in marginal.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="one turn, 1 and 10 viewers")
    parser.add_argument("--feed", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feed:
        feed(int(options.feed[0]), Path(options.feed[1]))
    sizes, turns = ((1, 10), 1) if options.quick else (VIEWERS, TURNS)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        narrow: list[dict[str, Any]] = []
        for turn in range(turns):
            for viewers in sizes:
                for sender in SENDERS:
                    if sender == "naive" and viewers > 1:
                        continue  # one encoder uses most of a core
                    print(f"turn {turn + 1} of {turns}: {sender}, {viewers}", file=sys.stderr, flush=True)
                    found.setdefault((sender, viewers), []).append(bench.row(sender, viewers))
            print(f"turn {turn + 1} of {turns}: ours, 50 at 2 Mbit/s on one core", file=sys.stderr, flush=True)
            narrow.append(bench.on_one_core())
    rows = [median(each) for each in found.values()]
    rows.sort(key=lambda row: (SENDERS.index(row["sender"]), row["viewers"]))
    report(rows)
    # The worst turn counts: one late picture is a failure.
    rows.append(max(narrow, key=lambda row: int(row["late_frames"])))
    print("\n50 viewers at 2 Mbit/s on one core, the worst turn:", json.dumps(rows[-1]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
