"""Attacks on a real daemon: `./dev attack [--seconds N] [--json FILE] [ATTACK ...]`.

The daemon requires tokens and uses a real mosquitto. A viewer watches and an honest backend requests the status five
times per second, while another process attacks for a minute at a time. Each row of the table shows the attack, how many
messages or connections per second it made, the viewer's pictures per second and longest gap, how long the honest
backend waited for its replies, and the daemon's memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.fanout import rss_mb
from bench.signalling import OFFERS, TOPICS, command, percentiles
from edge.client import CameraClient, Signer
from edge.errors import EdgeError
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import ROOT, Daemon, required_auth
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from edge.client import RemoteCamera

REPLY_TIMEOUT_S = 2.0
REQUEST_S = 0.2
REPORT_S = 0.5
CLIENTS = 500
SUBJECTS = 8
HONEST = "bench"
"""The reply client of the honest backend."""
SLOW = {"sdp": [{"a": 1}] * 2400}
"""25 kB that are slow to parse."""
LARGE_BYTES = 120_000
IDLE_CONNECTIONS = 1500


@dataclass(frozen=True)
class Target:
    """What an attacker knows. `key_file`: the backend's key, for attacks by viewers with valid tokens."""

    broker_port: int
    api_port: int
    ice_port: int
    key_file: str


@dataclass(frozen=True)
class Row:
    """Figures of one attack."""

    attack: str
    per_s: int
    fps: float
    longest_gap_ms: int
    reply_p95_ms: float | None
    answered: int
    refused: int
    unanswered: int
    rss_before_mb: float
    rss_after_mb: float


# The attacks. Each makes one message or connection per step, and yields after each.


def publish(target: Target, payloads: Iterator[bytes]) -> Iterator[None]:
    name = f"attack-{secrets.token_hex(4)}"
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", target.broker_port)
    client.loop_start()
    for payload in payloads:
        client.publish(TOPICS.command, payload, 0)
        yield


def commands(
    kind: str, body: dict[str, Any], tokens: Iterable[str | None] = (None,), client: str | None = None
) -> Iterator[bytes]:
    """Commands of ever new ids from many reply clients, or in the name of one. The tokens are used in turn."""
    for number, token in enumerate(itertools.cycle(tokens)):
        reply_to = TOPICS.reply(client or f"attack-{number % CLIENTS}")
        yield json.dumps(command(kind, body, token, reply_to=reply_to)).encode()


def strangers(count: int = 1) -> list[str]:
    """Forged tokens: the key's name is right, the key is not."""
    signer = Signer.generate("bench")
    return [signer.sign("cam-1", "mallory", ["view", "manage"]) for _ in range(count)]


def offers(key_file: Path) -> Iterator[bytes]:
    """Offers of several viewers, each with a token of its own, because a token opens one session."""
    signer = Signer.read(key_file, "bench")
    for number in itertools.count():
        token = signer.sign("cam-1", f"mallory-{number % SUBJECTS}", ["view"])
        yield from itertools.islice(commands("session.offer", {"sdp": OFFERS["offer"]}, [token]), 1)


def large() -> Iterator[bytes]:
    return itertools.repeat(json.dumps(command("session.offer", {"sdp": "v" * LARGE_BYTES})).encode())


def connections(target: Target, head: bytes = b"") -> Iterator[None]:
    """Connect to the local API again and again; keep the latest connections open."""
    opened: list[socket.socket] = []
    while True:
        if len(opened) >= IDLE_CONNECTIONS:
            opened.pop(0).close()
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", target.api_port))
        opened.append(connection)
        yield
        with contextlib.suppress(OSError):
            connection.send(head)


def large_bodies(target: Target) -> Iterator[None]:
    head = b"POST /api/v1/stream/start HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target.api_port), 1) as connection:
            connection.sendall(head + b"Content-Length: 600000000\r\n\r\n")
            for _ in range(100):
                connection.sendall(bytes(1_000_000))
                yield
        yield


def datagrams(target: Target) -> Iterator[None]:
    """Garbage, and what looks like STUN, DTLS and RTP."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    starts = (b"\x00\x01\x00\x00\x21\x12\xa4\x42", b"\x16\xfe\xfd", b"\x80\xc9", b"\x80\x66", b"")
    for start in itertools.cycle(starts):
        with contextlib.suppress(OSError):
            sender.sendto(start + secrets.token_bytes(200), ("127.0.0.1", target.ice_port))
        yield


ATTACKS: dict[str, tuple[int, Callable[[Target], Iterator[None]]]] = {
    "commands without a token": (2000, lambda to: publish(to, commands("stream.stop", {}))),
    "tokens of a stranger": (2000, lambda to: publish(to, commands("stream.stop", {}, strangers()))),
    "25 kB JSON, honest topic": (2000, lambda to: publish(to, commands("session.offer", SLOW, client=HONEST))),
    "forged tokens, honest topic": (
        2000,
        lambda to: publish(to, commands("status.get", {}, strangers(CLIENTS), HONEST)),
    ),
    "garbage": (2000, lambda to: publish(to, iter(lambda: secrets.token_bytes(1000), b""))),
    "messages of 120 kB": (100, lambda to: publish(to, large())),
    "offers that never connect": (50, lambda to: publish(to, offers(Path(to.key_file)))),
    "idle connections": (500, connections),
    "unfinished requests": (500, lambda to: connections(to, b"GET /healthz HTTP/1.1\r\nHost: lo")),
    "bodies of 600 MB": (200, large_bodies),
    "datagrams": (5000, datagrams),
}
"""By name: how many per second, and what it does."""


def attack(name: str, target: Target) -> None:
    """Attack until the process is killed. Print the number of steps so far twice per second."""
    per_s, make = ATTACKS[name]
    started_s = reported_s = time.monotonic()
    for number, _ in enumerate(make(target), 1):
        now_s = time.monotonic()
        if now_s - reported_s >= REPORT_S or number == 1:
            reported_s = now_s
            print(number, flush=True)
        time.sleep(max(0.0, started_s + number / per_s - now_s))


class TimedViewer(Viewer):
    """Also remembers when it decoded each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.times_s: list[float] = []

    async def record(self) -> None:
        seen = len(self.widths)
        while True:
            await self.wait_for_pictures(1)
            self.times_s += [time.monotonic()] * (len(self.widths) - seen)
            seen = len(self.widths)


@dataclass(frozen=True)
class Victim:
    """A daemon, and the honest backend's connection to it."""

    daemon: Daemon
    pid: int
    broker: Mosquitto
    camera: RemoteCamera
    signer: Signer

    def token(self, subject: str) -> str:
        return self.signer.sign("cam-1", subject, ["view"], client=HONEST)


class HonestBackend:
    """Requests the status five times per second."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim
        self.took_ms: list[float] = []
        self.refused = self.unanswered = 0

    async def run(self) -> None:
        while True:
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    await self._victim.camera.status(token=self._victim.token("anna"))
            except TimeoutError:
                self.unanswered += 1
            except EdgeError:
                self.refused += 1
            else:
                self.took_ms.append(1000 * (time.monotonic() - started_s))
            await asyncio.sleep(REQUEST_S)


@contextlib.contextmanager
def attacking(name: str, target: Target) -> Iterator[subprocess.Popen[str]]:
    command_line = [sys.executable, "-m", "bench.attack", "--attacker", name, json.dumps(asdict(target))]
    with subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def measure(name: str, seconds: float, victim: Victim, target: Target) -> Row:
    """Attack for a while; watch and request meanwhile."""
    viewer, backend = TimedViewer(), HonestBackend(victim)
    await viewer.watch(victim.camera, token=victim.token("anna"))
    await viewer.wait_for_pictures(30)
    before_mb = rss_mb(victim.pid)
    with attacking(name, target) as process:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        started_s = time.monotonic()
        tasks = [asyncio.create_task(part) for part in (viewer.record(), backend.run())]
        await asyncio.sleep(seconds)
        elapsed_s = time.monotonic() - started_s
        after_mb = rss_mb(victim.pid)
        process.kill()
        steps = int((await asyncio.to_thread(process.stdout.read)).split()[-1])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    times_s = [started_s, *viewer.times_s, started_s + elapsed_s]
    await viewer.close()
    return Row(
        name,
        round(steps / elapsed_s),
        round(len(viewer.times_s) / elapsed_s, 1),
        round(1000 * max(later - earlier for earlier, later in itertools.pairwise(times_s))),
        percentiles(backend.took_ms)["p95"] if len(backend.took_ms) > 1 else None,
        len(backend.took_ms),
        backend.refused,
        backend.unanswered,
        before_mb,
        after_mb,
    )


@contextlib.asynccontextmanager
async def attacked(directory: Path) -> AsyncIterator[Victim]:
    """A daemon of its own for each attack."""
    signer = Signer.generate("bench")
    broker = Mosquitto(directory)
    small = {"hd": {"width": 320, "height": 240}, "sd": {"width": 160, "height": 120}}
    daemon = Daemon(directory, broker.settings(tls=False), auth=required_auth(signer, directory), camera=small)
    broker.start()
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), HONEST) as client:
            camera = client.camera("cam-1")
            await camera.online()
            assert daemon.process is not None
            yield Victim(daemon, daemon.process.pid, broker, camera, signer)
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()


def udp_port(pid: int) -> int:
    """The first UDP port that the process has open."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(str(entry.readlink()))
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    return 9


async def run(names: list[str], seconds: float) -> list[Row]:
    rows = []
    print(f"{'attack':27}{'per s':>7}{'fps':>6}{'gap ms':>8}{'p95 ms':>8}{'answered':>10}{'MB before':>11}{'after':>7}")
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            async with attacked(Path(directory)) as victim:
                watching = Viewer()
                await watching.watch(victim.camera, token=victim.token("eve"))
                key_file, _ = victim.signer.save(Path(directory) / "backend")
                target = Target(victim.broker.port, victim.daemon.api_port, udp_port(victim.pid), str(key_file))
                row = await measure(name, seconds, victim, target)
                await watching.close()
        rows.append(row)
        total = row.answered + row.refused + row.unanswered
        print(
            f"{row.attack:27}{row.per_s:7}{row.fps:6}{row.longest_gap_ms:8}{row.reply_p95_ms or '':>8}"
            f"{f'{row.answered}/{total}':>10}{row.rss_before_mb:11}{row.rss_after_mb:7}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev attack", description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"one of: {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="duration of each attack (default: 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--attacker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attacker:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        attack(arguments.attacker[0], Target(**json.loads(arguments.attacker[1])))
        return
    if unknown := set(arguments.attacks) - ATTACKS.keys():
        parser.error(f"unknown attack: {', '.join(sorted(unknown))}")
    rows = asyncio.run(run(arguments.attacks or list(ATTACKS), arguments.seconds))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
