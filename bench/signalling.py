"""Benchmark of reply times and of floods of bad commands: `./dev bench signalling [--json FILE] [--turns N]`.

All parts are real and run on this machine: the daemon with required tokens and the synthetic source, and mosquitto
with client certificates. The daemon uses paho and AWS's client in turns; the median of the turns counts. Each figure
is shown with the round trip of a plain echo client at the same time, for a message of the same size. Then a viewer
watches during a flood of 500 bad commands per second from ten reply clients: without a token, with invalid or expired
tokens, or garbage. Measured are late pictures and the replies to an honest client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.fanout import PEERS, rss_mb, running
from edge.client import Signer
from edge.contract.topics import Topics
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, Daemon, required_auth
from tests.rigs.go_program import build
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator

CLIENTS = ("paho", "aws")
REQUESTS, TURNS = 40, 3
CALM_S = FLOOD_S = 10
REPLY_TIMEOUT_S = 1.0
"""Above the rate limit of error replies, the daemon counts a rejection without a reply."""
FLOOD_PER_S, FLOODERS = 500, 10
TARGETS = {"status_get": 10, "offer": 60, "offer_over_4_kb": 60}
TOPICS = Topics("cam-1")
ECHO, ECHOED = "bench/echo", "bench/echoed"
REPLY_TO = TOPICS.reply("bench")
OFFERS = {
    name: (ROOT / f"tests/offers/{file}.sdp").read_text().replace("\n", "\r\n")
    for name, file in (("offer", "firefox"), ("offer_over_4_kb", "chrome"))
}


def command(kind: str, body: dict[str, Any], token: str | None = None, **more: Any) -> dict[str, Any]:
    expires_at = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    fields = {"v": 1, "id": secrets.token_hex(8), "type": kind, "expires_at": expires_at, "reply_to": REPLY_TO}
    return {**fields, "body": body, **({} if token is None else {"token": token}), **more}


class Backend:
    """An honest backend that measures the time to each reply."""

    def __init__(self, mqtt: MqttSettings, signer: Signer) -> None:
        self._signer = signer
        self.tokens: dict[str, str] = {}
        """The token of each session."""
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._linked = asyncio.Event()
        self._broker = PahoBroker(mqtt, "bench", (REPLY_TO, ECHOED), None)
        self._broker.listen(self._receive, lambda up: self._linked.set() if up else None)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._broker.run(asyncio.Event()))
        try:
            async with asyncio.timeout(20):
                await self._linked.wait()
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _receive(self, message: Message) -> None:
        fields = json.loads(message.payload)
        waiting = self._waiting.pop(fields["id"], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(fields)

    async def request(
        self, fields: dict[str, Any], topic: str = TOPICS.command, timeout_s: float = 20
    ) -> tuple[float, dict[str, Any]]:
        """Returns: milliseconds until the reply, and the reply."""
        future = self._waiting[fields["id"]] = asyncio.get_running_loop().create_future()
        message = Message(topic, json.dumps(fields).encode())
        started_s = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            _, reply = await asyncio.gather(self._broker.publish(message), future)
        return 1000 * (time.perf_counter() - started_s), reply

    def token(self, *scopes: str) -> str:
        return self._signer.sign("cam-1", "anna", scopes, client="bench", ttl_s=300)

    async def offer(self, sdp: str, session: str, *, trickle: bool = True) -> tuple[float, str, int]:
        """Returns: milliseconds until the answer, the answer, and the size of the offer in bytes."""
        body = {"sdp": sdp, "session": session, "trickle": trickle}
        fields = command("session.offer", body, self.token("view"))
        took_ms, reply = await self.request(fields)
        assert reply["ok"], reply
        self.tokens[session] = fields["token"]
        return took_ms, reply["body"]["sdp"], len(json.dumps(fields))

    async def echo(self, size: int) -> float:
        fields = {"id": secrets.token_hex(8), "padding": ""}
        fields["padding"] = "x" * (size - len(json.dumps(fields)))
        return (await self.request(fields, ECHO))[0]


async def reply_times(backend: Backend) -> dict[str, dict[str, float]]:
    """Measure each command and an echo of the same size, one after the other."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TARGETS}
    view = backend.token("view")
    for number in range(REQUESTS + 1):
        fields = command("status.get", {}, view)
        took_ms, reply = await backend.request(fields)
        assert reply["ok"], reply
        times = {"status_get": (took_ms, await backend.echo(len(json.dumps(fields))))}
        for name, sdp in OFFERS.items():
            session = secrets.token_hex(8)
            took_ms, _, size = await backend.offer(sdp, session)
            await backend.request(command("session.close", {"session": session}, backend.tokens.pop(session)))
            await asyncio.sleep(0.05)
            times[name] = took_ms, await backend.echo(size)
        if number:  # the first one opens the camera
            for name, pair in times.items():
                found[name].append(pair)
        progress(f"command to reply: {number} of {REQUESTS}")
    return {name: compare(pairs) for name, pairs in found.items()}


def compare(pairs: list[tuple[float, float]]) -> dict[str, float]:
    took, echo = ([pair[at] for pair in pairs] for at in (0, 1))
    figures = {**percentiles(took), **{f"echo_{name}": value for name, value in percentiles(echo).items()}}
    return {**figures, "ratio_p50": round(statistics.median(took) / statistics.median(echo), 1)}


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(statistics.median(values), 2), "p95": round(cuts[18], 2)}


async def measure_with_viewer(backend: Backend, daemon: Daemon, viewers: Path, flood: list[str]) -> dict[str, Any]:
    """Measure a viewer and an honest client, without the flood and with it."""
    loop = asyncio.get_running_loop()

    class Handler(BaseHTTPRequestHandler):
        """Accepts the viewer's offer."""

        def do_POST(self) -> None:
            sdp = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sdp"]
            offer = backend.offer(sdp, "watching", trickle=False)
            _, answer, _ = asyncio.run_coroutine_threadsafe(offer, loop).result(20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"sdp": answer, "type": "answer"}).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with running(viewers, "-n", "1", "-url", f"http://127.0.0.1:{server.server_address[1]}/offer") as viewer:
            assert viewer.stdin is not None
            assert viewer.stdout is not None
            assert await asyncio.to_thread(viewer.stdout.readline) == "READY\n", "the viewer got no picture"
            server.shutdown()
            await asyncio.sleep(3)
            calm = await measure(backend, daemon, viewer, CALM_S, "without the flood")
            with running(*flood) as flooding:
                assert flooding.stdout is not None
                await asyncio.to_thread(flooding.stdout.readline)
                flooded = await measure(backend, daemon, viewer, FLOOD_S, f"{FLOOD_PER_S} bad commands per second")
    return {"calm": calm, "flood": flooded}


async def measure(
    backend: Backend, daemon: Daemon, viewer: subprocess.Popen[str], seconds: float, what: str
) -> dict[str, Any]:
    progress(what)
    before, _ = await counters(daemon), await frames_received(viewer)
    started_s = time.monotonic()
    view = backend.token("view")
    candidate = {"session": "watching", "candidate": None}
    status, session = await asyncio.gather(
        honest_client(backend, started_s + seconds, "status.get", {}, view),
        honest_client(backend, started_s + seconds, "session.candidate", candidate, backend.tokens["watching"]),
    )
    elapsed_s = time.monotonic() - started_s
    after, frames = await counters(daemon), await frames_received(viewer)
    refusals = sum(after[name] - before.get(name, 0) for name in after if name.startswith("refused_"))
    return {
        "late_frames": after.get("late_frames", 0) - before.get("late_frames", 0),
        "received_fps": round(frames / elapsed_s, 1),
        "refused_per_s": round(refusals / elapsed_s),
        "status.get": status,
        "session.candidate": session,
    }


async def honest_client(
    backend: Backend, until_s: float, kind: str, body: dict[str, Any], token: str | None
) -> dict[str, Any]:
    """Send ten commands per second."""
    took: list[float] = []
    refused = unanswered = 0
    while time.monotonic() < until_s:
        try:
            took_ms, reply = await backend.request(command(kind, body, token), timeout_s=REPLY_TIMEOUT_S)
        except TimeoutError:
            unanswered += 1
            continue
        if reply["ok"]:
            took.append(took_ms)
        else:
            assert reply["error"]["code"] == "rate_limited", reply
            refused += 1
        await asyncio.sleep(0.1)
    figures = percentiles(took) if len(took) > 1 else {"p50": None, "p95": None}
    return {**figures, "answered": len(took), "refused": refused, "unanswered": unanswered}


async def counters(daemon: Daemon) -> dict[str, int]:
    status = await asyncio.to_thread(daemon.status)
    assert status is not None
    counts: dict[str, int] = status["counters"]
    return counts


async def frames_received(viewer: subprocess.Popen[str]) -> int:
    assert viewer.stdin is not None
    assert viewer.stdout is not None
    viewer.stdin.write("\n")
    viewer.stdin.flush()
    return int(json.loads(await asyncio.to_thread(viewer.stdout.readline))["frames"])


def plain_client(name: str, mqtt: MqttSettings) -> paho.Client:
    """A client as in paho's documentation, but without Nagle's algorithm."""

    def no_delay(_: object, __: object, opened: Any) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.tls_set(str(mqtt.ca_file), str(mqtt.cert_file), str(mqtt.key_file))
    client.on_socket_open = no_delay
    client.max_inflight_messages_set(10_000)
    client.connect(mqtt.host, mqtt.effective_port)
    return client


def echo(mqtt: MqttSettings) -> None:
    """Publish each message of one topic on another topic."""
    client = plain_client("echo", mqtt)

    def answer(_: object, __: object, message: paho.MQTTMessage) -> None:
        client.publish(ECHOED, message.payload, 1)

    client.on_message = answer
    client.on_subscribe = lambda *_: print("READY", flush=True)
    client.subscribe(ECHO, 1)
    client.loop_forever()


def flood(mqtt: MqttSettings) -> None:
    """Publish bad commands until the process is killed."""
    client = plain_client("flood", mqtt)
    client.loop_start()
    bad = list(bad_commands())
    started_s, number = time.monotonic(), 0
    print("READY", flush=True)
    while True:
        time.sleep(max(0.0, started_s + number / FLOOD_PER_S - time.monotonic()))
        client.publish(TOPICS.command, bad[number % len(bad)], 1)
        number += 1


def bad_commands() -> Iterator[bytes]:
    untrusted, now_s = Signer.generate("bench"), time.time()
    offer = {"sdp": OFFERS["offer_over_4_kb"]}
    for number in range(FLOODERS):
        reply_to = TOPICS.reply(f"bad-{number}")
        invalid = untrusted.sign("cam-1", "mallory", ["view", "manage"])
        expired = untrusted.sign("cam-1", "mallory", ["view"], now_s=now_s - 3600)
        for kind, body, token in (
            ("session.offer", offer, None),
            ("session.offer", offer, invalid),
            ("stream.stop", {}, expired),
            ("status.get", {}, invalid[:-8]),
            ("session.dance", {}, invalid),
        ):
            yield json.dumps(command(kind, body, token, reply_to=reply_to)).encode()
        yield secrets.token_bytes(1000)


async def turn(client: str, directory: Path, viewers: Path) -> dict[str, Any]:
    authority, signer = Authority(directory), Signer.generate("bench")
    broker = Mosquitto(directory, authority=authority)

    def identity(name: str) -> dict[str, Any]:
        cert_file, key_file = authority.issue(name)
        files = {"ca_file": authority.ca_file, "cert_file": cert_file, "key_file": key_file}
        return broker.settings(**{key: str(path) for key, path in files.items()})

    mqtt = {name: identity(name) for name in ("cam-1", "bench", "echo", "flood")}
    daemon = Daemon(
        directory,
        {**mqtt["cam-1"], "client": client},
        auth=required_auth(signer, directory),
        camera={"idle_stop_s": 60},
        sessions={"max_viewers": 20},
    )

    def part(name: str) -> list[str]:
        return [sys.executable, "-m", "bench.signalling", f"--{name}", json.dumps(mqtt[name])]

    broker.start()
    backend = Backend(MqttSettings(**mqtt["bench"]), signer)
    try:
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"], 20)
        with running(*part("echo")) as echoing:
            assert echoing.stdout is not None
            assert await asyncio.to_thread(echoing.stdout.readline) == "READY\n"
            async with backend.connected():
                figures: dict[str, Any] = await reply_times(backend)
                assert daemon.process is not None
                figures["rss_mb"] = rss_mb(daemon.process.pid)
                figures |= await measure_with_viewer(backend, daemon, viewers, part("flood"))
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
    return {**figures, "load": round(os.getloadavg()[0], 2)}


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def median(turns: list[Any]) -> Any:
    """The median of each figure; for late pictures the maximum."""
    if isinstance(turns[0], dict):
        worst = {"late_frames": max}
        return {name: worst.get(name, median)([each[name] for each in turns if each is not None]) for name in turns[0]}
    known = [each for each in turns if each is not None]
    return round(statistics.median(known), 2) if known else None


def report(found: dict[str, dict[str, Any]]) -> None:
    print(f"\r\033[K{'ms':26}{'p50':>8}{'p95':>8}{'echo p50':>10}{'ratio':>7}{'target':>8}")
    for client, figures in found.items():
        for name, target in TARGETS.items():
            row = figures[name]
            print(f"{client:6}{name:20}{row['p50']:8}{row['p95']:8}{row['echo_p50']:10}{row['ratio_p50']:7}{target:8}")
    for client, figures in found.items():
        print(f"\n{client}, {figures['rss_mb']} MB, load {figures['load']}; a viewer and an honest client:")
        for name in ("calm", "flood"):
            print(f"{name:6}" + ", ".join(f"{key} {value}" for key, value in figures[name].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures of all turns to this file")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--echo", help=argparse.SUPPRESS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo or options.flood:
        (echo if options.echo else flood)(MqttSettings(**json.loads(options.echo or options.flood)))
        return
    turns: dict[str, list[dict[str, Any]]] = {client: [] for client in CLIENTS}
    with tempfile.TemporaryDirectory() as directory:
        viewers = build(PEERS / "viewers", Path(directory))
        for number in range(options.turns):
            for client in CLIENTS:
                turn_dir = Path(directory) / f"{client}-{number}"
                turn_dir.mkdir()
                turns[client].append(asyncio.run(turn(client, turn_dir, viewers)))
    found = {client: median(each) for client, each in turns.items()}
    report(found)
    if options.json:
        options.json.write_text(json.dumps({**found, "turns": turns}, indent=2) + "\n")


if __name__ == "__main__":
    main()
