"""How soon a command is answered, and what bad ones cost: `./dev bench signalling [--json FILE] [--turns N]`.

The daemon with tokens required, drawn pictures, mosquitto with client certificates, all real and on this machine; by
paho and by AWS's client, in turns, of which the median counts. Beside each figure stands the round trip of a bare echo
client in the same seconds, with a message of the same size. Then a viewer watches while 500 bad commands a second come
(no token, bad ones, expired ones, garbage), from ten reply clients: late pictures, and what an honest client notices.
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

from bench.fanout import build, rss_mb, running
from edge.client import Signer
from edge.contract.topics import Topics
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, Daemon, required
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator

CLIENTS = ("paho", "aws")
ASKED, TURNS = 40, 3
CALM_S = FLOOD_S = 10
UNANSWERED_S = 1.0
"""Beyond the budget of error replies a refusal is only counted: whoever asked hears nothing."""
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
    made = {"v": 1, "id": secrets.token_hex(8), "type": kind, "expires_at": expires_at, "reply_to": REPLY_TO}
    return {**made, "body": body, **({} if token is None else {"token": token}), **more}


class Asker:
    """An honest backend: asks, and takes the time to the reply."""

    def __init__(self, mqtt: MqttSettings, signer: Signer) -> None:
        self._signer = signer
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._linked = asyncio.Event()
        self._broker = PahoBroker(mqtt, "bench", (REPLY_TO, ECHOED), None)
        self._broker.listen(self._came, lambda up: self._linked.set() if up else None)

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

    def _came(self, message: Message) -> None:
        fields = json.loads(message.payload)
        waiting = self._waiting.pop(fields["id"], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(fields)

    async def ask(
        self, fields: dict[str, Any], topic: str = TOPICS.command, within_s: float = 20
    ) -> tuple[float, dict[str, Any]]:
        """Milliseconds, and the reply."""
        coming = self._waiting[fields["id"]] = asyncio.get_running_loop().create_future()
        message = Message(topic, json.dumps(fields).encode())
        begun_s = time.perf_counter()
        async with asyncio.timeout(within_s):
            _, reply = await asyncio.gather(self._broker.publish(message), coming)
        return 1000 * (time.perf_counter() - begun_s), reply

    def token(self, *scopes: str) -> str:
        return self._signer.sign("cam-1", "anna", scopes, client="bench", ttl_s=300)

    async def offer(self, sdp: str, session: str, *, trickle: bool = True) -> tuple[float, str, int]:
        """Milliseconds, the answer, and the bytes that were sent."""
        body = {"sdp": sdp, "session": session, "trickle": trickle}
        fields = command("session.offer", body, self.token("view"))
        took_ms, reply = await self.ask(fields)
        assert reply["ok"], reply
        return took_ms, reply["body"]["sdp"], len(json.dumps(fields))

    async def echo(self, size: int) -> float:
        fields = {"id": secrets.token_hex(8), "padding": ""}
        fields["padding"] = "x" * (size - len(json.dumps(fields)))
        return (await self.ask(fields, ECHO))[0]


async def answers(asker: Asker) -> dict[str, dict[str, float]]:
    """Each command beside an echo of its size, one after the other."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TARGETS}
    view = asker.token("view")
    for number in range(ASKED + 1):
        fields = command("status.get", {}, view)
        took_ms, reply = await asker.ask(fields)
        assert reply["ok"], reply
        rounds = {"status_get": (took_ms, await asker.echo(len(json.dumps(fields))))}
        for name, sdp in OFFERS.items():
            session = secrets.token_hex(8)
            took_ms, _, size = await asker.offer(sdp, session)
            await asker.ask(command("session.close", {"session": session}))
            await asyncio.sleep(0.05)
            rounds[name] = took_ms, await asker.echo(size)
        if number:  # the first one opens the camera
            for name, pair in rounds.items():
                found[name].append(pair)
        progress(f"command to reply: {number} of {ASKED}")
    return {name: beside(pairs) for name, pairs in found.items()}


def beside(pairs: list[tuple[float, float]]) -> dict[str, float]:
    took, echo = ([pair[at] for pair in pairs] for at in (0, 1))
    figures = {**percentiles(took), **{f"echo_{name}": value for name, value in percentiles(echo).items()}}
    return {**figures, "ratio_p50": round(statistics.median(took) / statistics.median(echo), 1)}


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(statistics.median(values), 2), "p95": round(cuts[18], 2)}


async def watched(asker: Asker, daemon: Daemon, viewers: Path, flood: list[str]) -> dict[str, Any]:
    """What a viewer and an honest client notice, without the flood and with it."""
    loop = asyncio.get_running_loop()

    class Door(BaseHTTPRequestHandler):
        """Where the viewer posts its offer."""

        def do_POST(self) -> None:
            sdp = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sdp"]
            offer = asker.offer(sdp, "watching", trickle=False)
            _, answer, _ = asyncio.run_coroutine_threadsafe(offer, loop).result(20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"sdp": answer, "type": "answer"}).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with running(viewers, "-n", "1", "-url", f"http://127.0.0.1:{server.server_address[1]}/offer") as watching:
            assert watching.stdin is not None
            assert watching.stdout is not None
            assert await asyncio.to_thread(watching.stdout.readline) == "READY\n", "the viewer got no picture"
            server.shutdown()
            await asyncio.sleep(3)
            calm = await noticed(asker, daemon, watching, CALM_S, "without the flood")
            with running(*flood) as flooding:
                assert flooding.stdout is not None
                await asyncio.to_thread(flooding.stdout.readline)
                flooded = await noticed(asker, daemon, watching, FLOOD_S, f"{FLOOD_PER_S} bad commands a second")
    return {"calm": calm, "flood": flooded}


async def noticed(
    asker: Asker, daemon: Daemon, watching: subprocess.Popen[str], seconds: float, what: str
) -> dict[str, Any]:
    progress(what)
    before, _ = await counters(daemon), await seen(watching)
    begun_s = time.monotonic()
    view = asker.token("view")
    candidate = {"session": "watching", "candidate": None}
    status, session = await asyncio.gather(
        honest(asker, begun_s + seconds, "status.get", {}, view),
        honest(asker, begun_s + seconds, "session.candidate", candidate, None),
    )
    elapsed_s = time.monotonic() - begun_s
    after, frames = await counters(daemon), await seen(watching)
    refusals = sum(after[name] - before.get(name, 0) for name in after if name.startswith("refused_"))
    return {
        "late_frames": after.get("late_frames", 0) - before.get("late_frames", 0),
        "received_fps": round(frames / elapsed_s, 1),
        "refused_per_s": round(refusals / elapsed_s),
        "status.get": status,
        "session.candidate": session,
    }


async def honest(asker: Asker, until_s: float, kind: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    """Asks ten times a second."""
    took: list[float] = []
    refused = unanswered = 0
    while time.monotonic() < until_s:
        try:
            took_ms, reply = await asker.ask(command(kind, body, token), within_s=UNANSWERED_S)
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
    told: dict[str, int] = status["counters"]
    return told


async def seen(watching: subprocess.Popen[str]) -> int:
    assert watching.stdin is not None
    assert watching.stdout is not None
    watching.stdin.write("\n")
    watching.stdin.flush()
    return int(json.loads(await asyncio.to_thread(watching.stdout.readline))["frames"])


def plain_client(name: str, mqtt: MqttSettings) -> paho.Client:
    """As its documentation has it, but without Nagle's delay."""

    def no_delay(_: object, __: object, opened: Any) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.tls_set(str(mqtt.ca_file), str(mqtt.cert_file), str(mqtt.key_file))
    client.on_socket_open = no_delay
    client.max_inflight_messages_set(10_000)
    client.connect(mqtt.host, mqtt.effective_port)
    return client


def echo(mqtt: MqttSettings) -> None:
    """What comes on one topic goes out on another, and that is all."""
    client = plain_client("echo", mqtt)

    def answer(_: object, __: object, message: paho.MQTTMessage) -> None:
        client.publish(ECHOED, message.payload, 1)

    client.on_message = answer
    client.on_subscribe = lambda *_: print("READY", flush=True)
    client.subscribe(ECHO, 1)
    client.loop_forever()


def flood(mqtt: MqttSettings) -> None:
    """Bad commands, until it is killed."""
    client = plain_client("flood", mqtt)
    client.loop_start()
    bad = list(bad_commands())
    begun_s, number = time.monotonic(), 0
    print("READY", flush=True)
    while True:
        time.sleep(max(0.0, begun_s + number / FLOOD_PER_S - time.monotonic()))
        client.publish(TOPICS.command, bad[number % len(bad)], 1)
        number += 1


def bad_commands() -> Iterator[bytes]:
    ours, now_s = Signer.generate("bench"), time.time()
    offer = {"sdp": OFFERS["offer_over_4_kb"]}
    for number in range(FLOODERS):
        reply_to = TOPICS.reply(f"bad-{number}")
        foreign = ours.sign("cam-1", "mallory", ["view", "manage"])
        expired = ours.sign("cam-1", "mallory", ["view"], now_s=now_s - 3600)
        for kind, body, token in (
            ("session.offer", offer, None),
            ("session.offer", offer, foreign),
            ("stream.stop", {}, expired),
            ("status.get", {}, foreign[:-8]),
            ("session.dance", {}, foreign),
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
        auth=required(signer, directory),
        camera={"idle_stop_s": 60},
        sessions={"max_viewers": 20},
    )

    def part(name: str) -> list[str]:
        return [sys.executable, "-m", "bench.signalling", f"--{name}", json.dumps(mqtt[name])]

    broker.start()
    asker = Asker(MqttSettings(**mqtt["bench"]), signer)
    try:
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"], 20)
        with running(*part("echo")) as echoing:
            assert echoing.stdout is not None
            assert await asyncio.to_thread(echoing.stdout.readline) == "READY\n"
            async with asker.connected():
                figures: dict[str, Any] = await answers(asker)
                assert daemon.process is not None
                figures["rss_mb"] = rss_mb(daemon.process.pid)
                figures |= await watched(asker, daemon, viewers, part("flood"))
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
    return {**figures, "load": round(os.getloadavg()[0], 2)}


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def median(turns: list[Any]) -> Any:
    """Figure by figure; of late pictures the worst."""
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
        print(f"\n{client}, {figures['rss_mb']} MB, load {figures['load']}; a viewer, and an honest client beside it:")
        for name in ("calm", "flood"):
            print(f"{name:6}" + ", ".join(f"{key} {value}" for key, value in figures[name].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too, each turn's as well")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--echo", help=argparse.SUPPRESS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo or options.flood:
        (echo if options.echo else flood)(MqttSettings(**json.loads(options.echo or options.flood)))
        return
    turns: dict[str, list[dict[str, Any]]] = {client: [] for client in CLIENTS}
    with tempfile.TemporaryDirectory() as directory:
        viewers = build("viewers", Path(directory))
        for number in range(options.turns):
            for client in CLIENTS:
                place = Path(directory) / f"{client}-{number}"
                place.mkdir()
                turns[client].append(asyncio.run(turn(client, place, viewers)))
    found = {client: median(each) for client, each in turns.items()}
    report(found)
    if options.json:
        options.json.write_text(json.dumps({**found, "turns": turns}, indent=2) + "\n")


if __name__ == "__main__":
    main()
