"""Records every message between a real device and its backends, from the first offer to the last will.

`python -m tests.rigs.backend_story` rewrites the examples in the docs: docs/examples.json and the blocks of
docs/backend.md and docs/shadow.md that are generated from it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
import zlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from edge.client import Signer
from edge.contract.asyncapi import EXAMPLES
from edge.contract.codes import Code
from edge.contract.topics import Topics
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.backend_page import PAGES, page
from tests.rigs.coturn import Coturn
from tests.rigs.daemon import ROOT, Daemon, required_auth
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Json = dict[str, Any]

TOPICS = Topics("cam-1")
CHROME = (ROOT / "tests/offers/chrome.sdp").read_text()
_TURN_USER, _TURN_PASSWORD = "anna", "turn-password"
_WAIT_S = 20


class Backend:
    """One reply client without the project's own client: JSON over an MQTT link.

    `messages`: all messages received on `topics`. `next` returns each of them once.
    `session_token` opened its session.
    """

    def __init__(self, name: str, broker: Mosquitto, signer: Signer, *topics: str, version: str = "5") -> None:
        self.name = name
        self.messages: list[Message] = []
        self.session_token = ""
        self._version = version
        self._signer = signer
        self._numbers = itertools.count(1)
        self._untaken: list[tuple[Message, Json]] = []
        self._came = asyncio.Event()
        self._linked = asyncio.Event()
        mqtt = MqttSettings(**broker.settings(tls=False, version=version))
        self._link = PahoBroker(mqtt, name, topics, None)
        self._link.listen(self._hear, lambda up: self._linked.set() if up else None)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        link = asyncio.create_task(self._link.run(asyncio.Event()), name=self.name)
        try:
            await asyncio.wait_for(self._linked.wait(), _WAIT_S)
            yield
        finally:
            link.cancel()
            await asyncio.wait({link})

    def command(self, kind: str, body: Json | None = None, **fields: Any) -> Json:
        made: Json = {"v": 1, "id": fields.pop("id", None) or f"{self.name}-{next(self._numbers)}", "type": kind}
        made |= {"expires_at": _moment(30), "reply_to": TOPICS.reply(self.name), **fields}
        return made if body is None else made | {"body": body}

    def token(self, viewer: str, *scopes: str) -> str:
        return self._signer.sign("cam-1", viewer, scopes or ("view",), client=self.name)

    async def send(self, command: Json) -> Json:
        """Send a command and return its reply, which carries the correlation data on MQTT 5."""
        correlation = str(command["id"]).encode()
        payload = json.dumps(command).encode()
        await self._link.publish(
            Message(TOPICS.command, payload, response_topic=command["reply_to"], correlation=correlation)
        )
        where = TOPICS.reply(self.name)
        message, reply = await self._take(lambda topic, each: topic == where and each["id"] == command["id"])
        assert message.correlation == (correlation if self._version == "5" else None)
        return reply

    async def desire(self, document: Json) -> None:
        """Publish desired settings, as on brokers without a shadow service."""
        await self._link.publish(Message(TOPICS.shadow(at_aws=False).delta, json.dumps(document).encode(), retain=True))

    async def reported(self, version: int) -> Json:
        """The device's report about the settings of this version."""
        where = TOPICS.shadow(at_aws=False).update
        return await self.next(
            lambda topic, each: (
                topic == where and version == (each["state"]["reported"]["outcome"] or {}).get("version")
            )
        )

    async def ask(self, kind: str, body: Json | None = None, **fields: Any) -> Json:
        return await self.send(self.command(kind, body, **fields))

    async def next(self, wanted: Callable[[str, Json], object]) -> Json:
        """Wait for the first unread message that matches `wanted`."""
        return (await self._take(wanted))[1]

    async def notification(self, kind: str, session: str = "s-1", **body: Any) -> Json:
        """Wait for an unasked message about a session."""
        where = TOPICS.reply(self.name)
        wanted = {"session": session, **body}.items()
        return await self.next(
            lambda topic, each: topic == where and each["type"] == kind and wanted <= (each.get("body") or {}).items()
        )

    async def event(self, kind: str) -> Json:
        return await self.next(lambda topic, each: topic == TOPICS.event and each["type"] == kind)

    async def status(self, wanted: Callable[[Json], object]) -> Json:
        return await self.next(lambda topic, each: topic == TOPICS.status and wanted(each))

    async def _take(self, wanted: Callable[[str, Json], object]) -> tuple[Message, Json]:
        async with asyncio.timeout(_WAIT_S):
            while True:
                for entry in self._untaken:
                    if wanted(entry[0].topic, entry[1]):
                        self._untaken.remove(entry)
                        return entry
                self._came.clear()
                await self._came.wait()

    def _hear(self, message: Message) -> None:
        self.messages.append(message)
        self._untaken.append((message, json.loads(message.payload)))
        self._came.set()


@dataclass
class Story:
    """`messages`: all messages in order, including the commands. `examples`: some of them, by name."""

    messages: list[Message] = field(default_factory=list)
    examples: dict[str, Json] = field(default_factory=dict)

    def show(self, **messages: tuple[str, Json]) -> None:
        """Keep messages with their topics as examples; values that differ each time are replaced."""
        for name, (topic, message) in messages.items():
            self.examples[name] = {"topic": topic, "message": _settled(message, name)}


async def record_story(directory: Path) -> Story:
    """Run the whole story."""
    signer = Signer.generate("2026-11")
    broker, turn = Mosquitto(directory), Coturn(_TURN_USER, _TURN_PASSWORD)
    daemon = Daemon(
        directory,
        broker.settings(tls=False, reconnect_cap_s=1, telemetry_s=1),
        auth=required_auth(signer, directory),
        ice={"allowed_hosts": [turn.host], "allowed_ports": [turn.port]},
        sessions={"max_viewers": 2, "connect_timeout_s": 60},
    )
    story = Story()
    bff = Backend("bff-7", broker, signer, f"{TOPICS.prefix}/#")
    other = Backend("bff-8", broker, signer, TOPICS.reply("bff-8"), version="3.1.1")
    async with AsyncExitStack() as stack:
        stack.callback(broker.stop)
        broker.start()
        stack.callback(turn.stop)
        turn.start()
        stack.push_async_callback(asyncio.to_thread, daemon.end)
        await asyncio.to_thread(daemon.start)
        for backend in (bff, other):
            await stack.enter_async_context(backend.running())
        viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        stack.push_async_callback(viewer.close)
        await bff.status(lambda status: status["online"])
        await _watching(story, bff, viewer, f"turn:{turn.host}:{turn.port}?transport=udp")
        await _using(story, bff)
        await _refused(story, bff, other)
        await _tuned(story, bff)
        await _stalled(story, bff, daemon)
        await _ending(story, bff, other)
        await _gone(story, bff, daemon)
        story.messages = bff.messages
    return story


async def _watching(story: Story, bff: Backend, viewer: RTCPeerConnection, turn: str) -> None:
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    lines = viewer.localDescription.sdp.split("\r\n")
    candidates = [line.removeprefix("a=") for line in lines if line.startswith("a=candidate")]
    sdp = "\r\n".join(line for line in lines if not line.startswith(("a=candidate", "a=end-of-candidates")))
    servers = [{"urls": turn, "username": _TURN_USER, "credential": _TURN_PASSWORD}]
    body = {"sdp": sdp, "session": "s-1", "trickle": True, "ice_servers": servers}
    bff.session_token = bff.token("anna")
    offer = bff.command("session.offer", body, token=bff.session_token)
    answer = await bff.send(offer)
    assert await bff.send(offer) == answer, "the same command again gets the same reply again"
    await viewer.setRemoteDescription(RTCSessionDescription(answer["body"]["sdp"], "answer"))
    first, *more = [{"session": "s-1", "candidate": line, "sdp_mid": "0"} for line in [*candidates, None]]
    candidate = bff.command("session.candidate", first, token=bff.session_token)
    taken = await bff.send(candidate)
    for number, each in enumerate(more):
        assert (await bff.ask("session.candidate", each, id=f"more-{number}", token=bff.session_token))["ok"]
    story.show(offer=(TOPICS.command, offer), answer=(TOPICS.reply(bff.name), answer))
    story.show(candidate=(TOPICS.command, candidate), candidate_taken=(TOPICS.reply(bff.name), taken))
    found = await bff.next(lambda topic, each: each.get("type") == "session.candidate" and "typ relay" in str(each))
    last = await bff.notification("session.candidate", candidate=None)
    story.show(devices_candidate=(TOPICS.reply(bff.name), found), devices_last=(TOPICS.reply(bff.name), last))
    for name, kind in (("opened", "session.opened"), ("live", "session.live")):
        story.show(**{name: (TOPICS.event, await bff.event(kind))})
    watched = await bff.status(lambda status: status["camera"]["state"] == "running" and status["viewers"]["connected"])
    story.show(status=(TOPICS.status, watched))


async def _using(story: Story, bff: Backend) -> None:
    async def exchange(name: str, kind: str, body: Json | None = None, scope: str | None = None) -> None:
        command = bff.command(kind, body, token=bff.token("admin", scope) if scope else bff.session_token)
        reply = await bff.send(command)
        assert reply["ok"], reply
        story.show(**{name: (TOPICS.command, command), f"{name}_reply": (TOPICS.reply(bff.name), reply)})

    await exchange("quality", "session.quality", {"session": "s-1", "quality": "sd"})
    async with asyncio.timeout(_WAIT_S):
        for number in itertools.count():  # until the session was measured
            listed = await bff.ask("session.list", id=f"poll-{number}", token=bff.token("admin", "manage"))
            if listed["body"]["sessions"][0]["bitrate_bps"]:
                break
            await asyncio.sleep(0.2)
    figures = await bff.next(lambda topic, each: topic == TOPICS.telemetry and _measured_in_sd(each["sessions"]))
    story.show(telemetry=(TOPICS.telemetry, figures))
    await exchange("list", "session.list", scope="manage")
    await exchange("snapshot", "camera.snapshot", {"width": 320}, "view")
    await exchange("controls", "camera.set", {"brightness": 0.1, "flip_vertical": True}, "control")
    story.show(controls_event=(TOPICS.event, await bff.event("camera.set")))
    await exchange("question", "status.get", scope="view")


async def _refused(story: Story, bff: Backend, other: Backend) -> None:
    async def refused(name: str, code: Code, asker: Backend, kind: str, body: Json | None, **fields: Any) -> None:
        reply = await asker.ask(kind, body, **fields)
        assert reply["error"]["code"] == code, reply
        story.show(**{name: (TOPICS.reply(asker.name), reply)})

    offer = {"sdp": CHROME, "session": "s-2", "trickle": False}
    spent = other.token("boris")
    assert (await other.ask("session.offer", offer, token=spent))["ok"]
    await refused("busy", Code.BUSY, bff, "session.offer", {"sdp": CHROME}, token=bff.token("carla"))
    await refused("replayed", Code.REPLAYED, other, "session.offer", {"sdp": CHROME}, token=spent)
    await refused("expired", Code.EXPIRED, bff, "status.get", None, expires_at=_moment(-1), token=bff.token("anna"))
    await refused("unauthorized", Code.UNAUTHORIZED, bff, "session.list", None)
    await refused("forbidden", Code.FORBIDDEN, bff, "session.list", None, token=bff.token("anna"))
    await refused("not_the_owner", Code.FORBIDDEN, other, "session.close", {"session": "s-1"}, token=spent)
    await refused(
        "unknown_session", Code.UNKNOWN_SESSION, bff, "session.close", {"session": "s-9"}, token=bff.session_token
    )
    await refused("bad_message", Code.BAD_MESSAGE, bff, "session.quality", {"session": "s-1", "quality": "best"})
    await refused("unsupported", Code.UNSUPPORTED, bff, "session.answer", {"session": "s-1", "sdp": "v=0"})


async def _tuned(story: Story, bff: Backend) -> None:
    topics = TOPICS.shadow(at_aws=False)
    for name, version, viewers in (("refused_settings", 1, 0), ("applied_settings", 2, 3)):
        desired = {"version": version, "state": {"sessions": {"max_viewers": viewers}}}
        await bff.desire(desired)
        story.show(**{name: (topics.delta, desired)})
        reported = await bff.reported(version)
        story.show(**{f"{name}_report": (topics.update, reported)})
    story.show(refused_event=(TOPICS.event, await bff.event("settings.refused")))
    story.show(applied_event=(TOPICS.event, await bff.event("settings.applied")))


async def _stalled(story: Story, bff: Backend, daemon: Daemon) -> None:
    (camera,) = daemon.children()
    os.kill(camera, signal.SIGSTOP)
    where = TOPICS.reply(bff.name)
    story.show(stalled=(where, await bff.notification("session.camera", state="stalled")))
    story.show(lost=(TOPICS.event, await bff.event("camera.lost")))
    story.show(recovering=(TOPICS.event, await bff.event("camera.recovering")))
    story.show(moving=(where, await bff.notification("session.camera", state="live")))
    story.show(back=(TOPICS.event, await bff.event("camera.back")))


async def _ending(story: Story, bff: Backend, other: Backend) -> None:
    close = bff.command("session.close", {"session": "s-1"}, token=bff.session_token)
    story.show(close=(TOPICS.command, close), close_reply=(TOPICS.reply(bff.name), await bff.send(close)))
    story.show(closed=(TOPICS.reply(bff.name), await bff.notification("session.closed")))
    story.show(closed_event=(TOPICS.event, await bff.event("session.closed")))
    stop = bff.command("stream.stop", {"reason": "night"}, token=bff.token("admin", "manage"))
    stopped = await bff.send(stop)
    assert stopped["body"]["stream"] == {"wanted": "stopped", "reason": "night"}
    story.show(stop=(TOPICS.command, stop))
    story.show(ended_by_stop=(TOPICS.reply(other.name), await other.notification("session.closed", "s-2")))
    story.show(stop_event=(TOPICS.event, await bff.event("stream.stopped")))
    refused = await bff.ask("session.offer", {"sdp": CHROME}, token=bff.token("anna"))
    story.show(stopped=(TOPICS.reply(bff.name), refused))
    ranges = {"hd": {"max_bps": 2_000_000}}
    start = bff.command("stream.start", {"reason": "day", **ranges}, token=bff.token("admin", "manage"))
    assert (await bff.send(start))["body"]["stream"] == {"wanted": "running", "reason": "day"}
    story.show(start=(TOPICS.command, start), start_event=(TOPICS.event, await bff.event("stream.started")))


async def _gone(story: Story, bff: Backend, daemon: Daemon) -> None:
    assert await asyncio.to_thread(daemon.stop) == 0
    offline = await bff.status(lambda status: not status["online"])
    assert offline["camera"], "its own last status, not the will"
    await asyncio.to_thread(daemon.start)
    await bff.status(lambda status: status["online"] and status["started_at"] > offline["at"])
    story.show(started=(TOPICS.event, await bff.event("daemon.started")))
    assert daemon.process is not None
    daemon.process.kill()
    await asyncio.to_thread(daemon.process.wait, 10)
    story.show(will=(TOPICS.status, await bff.status(lambda status: not status["online"])))


def _outcome(report: Json) -> Json:
    return report["state"]["reported"]["outcome"] or {}


def _measured_in_sd(sessions: list[Json]) -> bool:
    return bool(sessions) and sessions[0]["quality"] == "sd" and bool(sessions[0]["bitrate_bps"])


# Replacements for values that differ each time. The vitals are those of a Raspberry Pi.
_SETTLED: dict[str, Any] = {
    "version": "0.1.0",
    "at": "2026-11-21T12:00:00Z",
    "valid_until": "2026-11-21T12:15:00Z",
    "since": "2026-11-21T11:58:00Z",
    "started_at": "2026-11-21T08:00:00Z",
    "expires_at": "2026-11-21T12:00:30Z",
    "token": "eyJhbGciOiJFZERTQSIs...",
    "sdp": "v=0\r\no=- ...",
    "jpeg_base64": "/9j/4AAQSkZJRgAB...",
    "urls": "turn:turn.example.org:3478?transport=udp",
    "path": "relay/host",
    "bitrate_bps": 2_480_000,
    "loss": 0.0,
    "fps": 30.0,
    "uptime_s": 14_400.0,
    "vitals": {
        "cpu_celsius": 54.5,
        "under_voltage": False,
        "load_1min": 0.42,
        "memory_available_bytes": 287_309_824,
        "memory_total_bytes": 436_207_616,
        "disk_free_bytes": 26_843_545_600,
        "uptime_s": 93_600.0,
        "daemon_memory_bytes": 78_643_200,
        "daemon_cpu_s": 312.5,
        "camera_memory_bytes": 52_428_800,
        "camera_cpu_s": 1180.25,
    },
    "counters": {"commands": 5, "sessions_opened": 1},
}


def _settled(message: Json, name: str) -> Json:
    settled: Json = json.loads(json.dumps(message), object_hook=_settled_fields)
    if settled.get("id", "").startswith(("d-", "e-")):
        settled["id"] = f"{settled['id'][0]}-{zlib.crc32(name.encode()):08x}"
    return settled


def _settled_fields(fields: Json) -> Json:
    known = {
        name: _SETTLED[name]
        for name, value in fields.items()
        # The version of settings is a number, which is kept.
        if name in _SETTLED and value and isinstance(value, str) == isinstance(_SETTLED[name], str)
    }
    if fields.get("candidate"):
        known["candidate"] = _settled_candidate(fields["candidate"])
    return fields | known


def _settled_candidate(line: str) -> str:
    """Use addresses that are reserved for documentation (RFC 5737)."""
    _, component, transport, priority, _, _, _, kind, *related = line.split()
    related_address = " raddr 192.0.2.9 rport 50000" if related else ""
    return f"candidate:1 {component} {transport} {priority} 192.0.2.7 50000 typ {kind}{related_address}"


def _moment(ahead_s: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat(timespec="seconds").replace("+00:00", "Z")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        story = asyncio.run(record_story(Path(directory)))
    EXAMPLES.write_text(json.dumps(story.examples, indent=1) + "\n")
    for path in PAGES:
        path.write_text(page(path.read_text(), story.examples))


if __name__ == "__main__":
    main()
