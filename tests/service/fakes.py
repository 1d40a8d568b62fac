"""Small real objects in the place of the camera, the peers and the broker."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge.core.access_unit import Quality, StreamFormat
from edge.core.camera_controls import Offered, check, in_force, still_accepted
from edge.errors import BrokerLost, CameraUnavailable, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.contract.messages import IceServer, IceServerLeftOut
    from edge.core.candidate import Candidate, LocalName
    from edge.core.offer import H264Choice, Offer
    from edge.core.once import Row
    from edge.core.ports import PeerEvents
    from edge.mqtt.broker import Message

FORMAT = StreamFormat(1280, 720, 30.0, "42c01f", "libx264")


class FakeStateStore:
    """`full`: it takes nothing. `gate`: nothing is written while it is closed."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] | None = None
        self.full = False
        self.gate = asyncio.Event()
        self.gate.set()

    def read(self) -> dict[str, Any] | None:
        return self.fields

    def set_aside(self, why: object) -> None:
        self.fields = None

    async def write(self, fields: dict[str, Any]) -> bool:
        await self.gate.wait()
        if not self.full:
            self.fields = json.loads(json.dumps(fields))
        return not self.full


class FakeLedger:
    """Rows in memory; hand it to a second daemon to restart."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Row] = {}

    def open(self) -> list[Row]:
        return list(self.rows.values())

    def put(self, row: Row) -> None:
        self.rows[row.key] = row

    def drop(self, key: tuple[str, str, str]) -> None:
        self.rows.pop(key, None)


class FakeEventStore:
    """Payloads in memory; hand it to a second daemon to restart. `puts` counts what was ever written."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}
        self.puts = 0

    def open(self) -> list[tuple[str, bytes]]:
        return list(self.payloads.items())

    def put(self, event_id: str, payload: bytes) -> None:
        self.payloads[event_id] = payload
        self.puts += 1

    def drop(self, event_id: str) -> None:
        del self.payloads[event_id]


class FakeCamera:
    def __init__(self) -> None:
        self.qualities: tuple[Quality, ...] = tuple(Quality)
        self.sd_level_idc = 30
        self.bitrates: dict[Quality, int] = {}
        self.offered = {"gain": Offered(1.0, 16.0), "flip_vertical": Offered(default=False)}
        self.values: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.wanted = False
        self.wants: list[bool] = []
        self.fault: str | None = None
        self.slow_s = 0.0

    def want(self, wanted: bool) -> None:
        if wanted != self.wanted:
            self.wants.append(wanted)
        self.wanted = wanted

    async def opened(self) -> StreamFormat:
        await asyncio.sleep(self.slow_s)
        if not self.wanted:
            raise CameraUnavailable("the camera is closing")
        if self.fault:
            raise CameraUnavailable(self.fault)
        return FORMAT

    async def closed(self) -> None:
        await asyncio.sleep(0)

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        return 100_000, 2_000_000

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        self.bitrates[quality] = bitrate_bps

    async def set_controls(self, values: dict[str, Any]) -> dict[str, Any]:
        assert self.wanted
        check(values, self.offered)
        self.values = still_accepted({**self.values, **values}, self.offered)
        return in_force(self.values, self.offered)

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        assert self.wanted
        await self.gate.wait()
        return f"JPEG {width} {jpeg_quality}".encode()


class FakePeer:
    """`accepts`, `gathers`: while one of these gates is closed, `accept` or `answer` waits."""

    def __init__(self, events: PeerEvents, quality: Quality) -> None:
        self.events = events
        self.quality = quality
        self.candidates: list[Candidate] = []
        self.names: list[LocalName] = []
        self.closed = False
        self.accepts, self.gathers = asyncio.Event(), asyncio.Event()
        self.accepts.set()
        self.gathers.set()
        self.refusal: Rejected | None = None
        self.bug: Exception | None = None
        self.hangs = False
        self.close_s = 0.0
        self.no_switch = ""
        self.path = "host/host"
        self.ice_servers_left_out: list[IceServerLeftOut] = []

    async def accept(self, offer: Offer, choice: H264Choice) -> None:
        await asyncio.sleep(0)
        await self.accepts.wait()
        if self.refusal:
            raise self.refusal

    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        await asyncio.sleep(0)
        await self.gathers.wait()
        return f"v=0 {choice.profile_level_id}"

    async def switch(self, quality: Quality) -> None:
        if self.no_switch:
            raise CameraUnavailable(self.no_switch)
        self.quality = quality

    def add_local_name(self, name: LocalName) -> None:
        self.names.append(name)

    async def add_candidate(self, candidate: Candidate) -> bool:
        if candidate.address.is_loopback:
            return False
        self.candidates.append(candidate)
        return True

    async def stats(self) -> tuple[int, float | None]:
        return 1000, 0.0

    async def close(self) -> None:
        if self.bug:
            raise self.bug
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.close_s)
        self.closed = True


class FakePeers:
    def __init__(self) -> None:
        self.made: list[FakePeer] = []
        self.prepare: Callable[[FakePeer], None] = lambda _: None

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> FakePeer:
        peer = FakePeer(events, quality)
        self.prepare(peer)
        self.made.append(peer)
        return peer


class FakeBroker:
    """A broker link that keeps what is published; a test delivers messages by hand.

    `failing`: so many publishes are not acknowledged. `gate`: none is while it is closed.
    """

    def __init__(self) -> None:
        self.connected = True
        self.optional_granted = True
        self.dropped = 0
        self.failing = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: str | None = None
        self.published: list[Message] = []
        self.counters: Counter[str] = Counter()
        self._came = asyncio.Event()

    def listen(self, on_message: Callable[[Message], None], on_link: Callable[[bool], None]) -> None:
        self.deliver = on_message
        self.on_link = on_link

    async def publish(self, message: Message) -> None:
        if not self.connected:
            raise BrokerLost("no link")
        if self.failing:
            self.failing -= 1
            raise BrokerLost("the broker did not acknowledge in time")
        await self.gate.wait()
        self.published.append(message)
        self._came.set()

    async def run(self, ready: asyncio.Event) -> None:
        ready.set()
        await asyncio.Event().wait()

    async def sent(self, wanted: Callable[[Message], bool]) -> dict[str, Any]:
        """The first published message of this kind, waited for."""
        async with asyncio.timeout(5):
            while True:
                for message in self.published:
                    if wanted(message):
                        self.published.remove(message)
                        fields: dict[str, Any] = json.loads(message.payload)
                        return fields
                self._came.clear()
                await self._came.wait()
