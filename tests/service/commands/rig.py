"""The command interface with fakes, and what its tests share."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.contract.messages import (
    AnswerBody,
    CandidateBody,
    ControlsBody,
    Limits,
    OfferBody,
    QualityBody,
    SessionInfo,
    SnapshotBody,
    StreamBody,
)
from edge.contract.topics import Topics
from edge.core.budget import CommandRates
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from tests.rigs.statuses import make_status
from tests.service.fakes import FakeBroker, FakeLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.contract.messages import Status
    from edge.core.camera_controls import ControlValues
    from edge.core.ports import SessionListener
    from edge.core.principal import Principal
    from edge.errors import EdgeError
    from edge.signalling.authority import Keys
    from tests.service.sessions.rig import Rig

TOPICS = Topics("cam-1")
REPLY_TO = TOPICS.reply("bff-1")


class FakeSessions:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bug: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.listener: SessionListener | None = None
        self.owner: Principal | None = None

    async def open(self, body: OfferBody, owner: Principal, listener: SessionListener) -> AnswerBody:
        self.calls.append(f"open {owner.subject}")
        await self.gate.wait()
        if self.bug:
            raise self.bug
        self.listener, self.owner = listener, owner
        return AnswerBody(session=body.session or "s", sdp="v=0", limits=Limits(viewers=5))

    async def candidate(self, body: CandidateBody, caller: Principal) -> None:
        self.calls.append(f"candidate {body.session}")

    async def close(self, session_id: str, caller: Principal) -> None:
        self.calls.append(f"close {session_id}")

    def listing(self) -> list[SessionInfo]:
        return []

    def check_owner(self, session_id: str, caller: Principal) -> None: ...

    async def quality(self, body: QualityBody, caller: Principal) -> None:
        self.calls.append(f"quality {body.session} {body.quality}")

    async def start(self, body: StreamBody, caller: Principal) -> None:
        self.calls.append(f"start {body.reason}")

    async def stop(self, reason: str | None, caller: Principal) -> None:
        self.calls.append(f"stop {reason}")


class FakeCamera:
    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.jpeg = b"JPEG"

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues:
        self.given = body.given()
        if self.given.get("gain") == 99:
            raise Rejected(Code.BAD_MESSAGE, "gain: 1 to 16")
        return {"gain": 2.0, "flip_vertical": False}

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        return self.jpeg


class CommandRig:
    """The command interface with fakes. Without `keys`, authority is off. `session_rig`: has real sessions."""

    def __init__(
        self,
        keys: Keys | None = None,
        ledger: FakeLedger | None = None,
        rates: CommandRates | None = None,
        session_rig: Rig | None = None,
    ) -> None:
        self.broker = FakeBroker()
        self.sessions = FakeSessions()
        self.camera = FakeCamera()
        self.counters: Counter[str] = Counter()
        self.refused: list[tuple[str, EdgeError]] = []
        self.now_s = 0.0
        self.tick_s = 0.0
        """How much time passes while a message is read."""
        self.wall_s = time.time()
        self.clock_known = True
        self.ledger = ledger or FakeLedger()
        self.outbox = Outbox(self.broker, TOPICS, self.status, self.counters)
        self.commands = Commands(
            TOPICS,
            session_rig.sessions if session_rig else self.sessions,
            session_rig.requests if session_rig else self.camera,
            self.outbox,
            authority=Authority("cam-1", keys, lambda: self.clock_known),
            once=Once(self.ledger),
            rates=rates or CommandRates(1000, 1000),
            status=self.status,
            now_s=lambda: self.now_s,
            wall_s=self.read_clock,
            on_refusal=lambda kind, error: self.refused.append((kind, error)),
            counters=self.counters,
        )

    def read_clock(self) -> float:
        self.now_s += self.tick_s
        return self.wall_s

    def status(self) -> Status:
        return make_status()

    def send(self, payload: bytes, **properties: Any) -> None:
        self.commands.receive(Message(TOPICS.command, payload, **properties))

    async def reply(self, command_id: str, topic: str = REPLY_TO) -> dict[str, Any]:
        return await self.broker.sent(lambda m: m.topic == topic and json.loads(m.payload)["id"] == command_id)

    async def ask(
        self, kind: str, content: dict[str, Any] | None = None, to: str = REPLY_TO, **fields: Any
    ) -> dict[str, Any]:
        command = message(kind, content, **{"reply_to": to, **fields})
        self.send(json.dumps(command).encode())
        return await self.reply(command["id"], to)


def message(kind: str, content: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    expires_at = datetime.now(UTC) + timedelta(seconds=30)
    made = {"v": 1, "id": f"c-{kind}", "type": kind, "expires_at": expires_at.isoformat(), "reply_to": REPLY_TO}
    return {**made, "body": content or {}, **fields}


@asynccontextmanager
async def running(run: Callable[[asyncio.Event], Any]) -> AsyncIterator[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(run(ready))
    await ready.wait()
    yield
    task.cancel()
    await asyncio.wait({task})
