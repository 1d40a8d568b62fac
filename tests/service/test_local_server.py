"""The server of the local page, over real sockets: what clients that misbehave cost."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from edge.errors import Unavailable
from edge.local_api import body_limit, connection
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.local_api.settings import ApiSettings
from tests.rigs.daemon import free_port
from tests.rigs.statuses import make_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edge.contract.messages import ControlsBody, SnapshotBody, StreamBody
    from edge.core.camera_controls import ControlValues, Offered
    from edge.core.principal import Principal

HEAD = b"Host: 127.0.0.1\r\n\r\n"
FRAMING = {
    "content-security-policy": "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Device:
    """A device whose picture is large. `reasons`: of the stops; `uses`: of the camera; `free`: it returns controls."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        self.uses = 0
        self.free = asyncio.Event()

    async def start(self, body: StreamBody, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None:
        self.reasons.append(reason)

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues:
        self.uses += 1
        return {}

    async def controls(self, caller: Principal) -> tuple[ControlValues, dict[str, Offered]]:
        self.uses += 1
        await self.free.wait()
        return {}, {}

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        self.uses += 1
        return bytes(12_000_000)


class Site:
    """A running server."""

    def __init__(self, port: int, device: Device, counters: Counter[str]) -> None:
        self.port = port
        self.device = device
        self.counters = counters
        self.opened: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection, which the fixture closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        return reader, writer

    async def ask(self, request: bytes) -> bytes:
        """Send bytes and return all that is sent until the connection closes."""
        reader, writer = await self.connect()
        writer.write(request)
        return await reader.read()

    async def occupy(self) -> None:
        """Send 32 requests that are answered when the device is free."""
        for number in range(32):
            _, writer = await self.connect()
            writer.write(b"GET /api/v1/camera HTTP/1.1\r\n" + HEAD)
            while self.device.uses <= number:
                await asyncio.sleep(0.001)

    async def status_code(self) -> int:
        """The answer to an honest client."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as client:
            return (await client.get("/healthz")).status_code


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


@asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    device, port, counters = Device(), free_port(), Counter[str]()
    app = make_app(device, device, make_status, lambda: None, counters)
    running = asyncio.create_task(LocalServer(app, ApiSettings(port=port), counters).run(asyncio.Event()))
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        async with asyncio.timeout(20):
            site = Site(port, device, counters)
            yield site
            for writer in site.opened:
                writer.close()
    finally:
        running.cancel()
        await asyncio.wait({running})


def code_of(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1])


def error_of(answer: bytes) -> str:
    code: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte every 20 ms until the connection is closed."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"G")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "withheld",
    [b"", b"GET /healthz HTTP/1.1\r\n", b"POST /api/v1/stream/stop HTTP/1.1\r\nContent-Length: 9\r\n" + HEAD + b"{"],
    ids=["nothing sent", "head withheld", "body withheld"],
)
async def test_clients_that_withhold_requests_do_not_keep_out_a_monitor(
    site: Site, caplog: pytest.LogCaptureFixture, withheld: bytes
) -> None:
    async def withhold() -> asyncio.StreamReader:
        reader, writer = await site.connect()
        writer.write(withheld)
        return reader

    first, *_ = [await withhold() for _ in range(32)]
    while await site.status_code() != 200:
        await asyncio.sleep(0.05)
    with contextlib.suppress(ConnectionError):
        assert await first.read() == b""
    await asyncio.sleep(connection.GRACE_S)
    for _ in range(3):
        assert await site.status_code() == 200
        await withhold()
    assert {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING} <= {
        "connections to the local page refused limit=32 count=1",
        "connections to the local page closed limit=32 count=1",
    }
    assert site.counters["local_connections_closed"] >= 1
    assert site.device.reasons == []


async def test_connections_that_have_just_been_opened_do_not_give_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GRACE_S", 60)
    for _ in range(32):
        await site.connect()
    assert await site.status_code() == 503
    assert site.counters == {"local_connections_refused": 1}


async def test_connection_that_has_its_answer_gives_way_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its client sends requests: it is not the one that keeps out a monitor."""
    monkeypatch.setattr(connection, "GRACE_S", 60)
    for _ in range(31):
        await site.connect()
    for closed in range(1, 4):
        reader, writer = await site.connect()
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\n" + HEAD)
            assert b"200 OK" in await reader.readuntil(b"}")
        assert await site.status_code() == 200
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert site.counters["local_connections_closed"] == closed
    assert site.counters["local_connections_refused"] == 0


async def test_requests_in_progress_take_at_most_32_places_and_one_log_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    await site.occupy()
    for _ in range(20):
        refused = await site.ask(b"GET /healthz HTTP/1.1\r\n" + HEAD)
        assert (code_of(refused), error_of(refused)) == (503, "rate_limited")
        assert b"retry-after: 5\r\n" in refused
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "connections to the local page refused limit=32 count=1"
    ]
    assert site.counters == {"local_connections_refused": 20}
    site.device.free.set()
    while await site.status_code() != 200:
        await asyncio.sleep(0.01)


async def test_refused_client_that_sends_its_request_first_gets_the_answer(site: Site) -> None:
    """The server closes the connection without having read the request, which resets it."""
    await site.occupy()

    def ask() -> int:
        client = http.client.HTTPConnection("127.0.0.1", site.port, timeout=5)
        try:
            client.request("GET", "/api/v1/snapshot.jpg")
            return client.getresponse().status
        finally:
            client.close()

    for _ in range(50):
        assert await asyncio.to_thread(ask) == 503
    assert site.device.uses == 32


async def test_connection_without_a_whole_request_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HEAD_S", 0.2)
    whole = b"GET /healthz HTTP/1.1\r\n" + HEAD
    async with asyncio.timeout(3):
        answers = await asyncio.gather(*map(site.ask, (b"", whole[:-2], whole, whole + whole[:-2])))
    assert [answer[:15] for answer in answers] == [b"", b"", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK"]
    assert answers[3].count(b"200 OK") == 1

    # The same for a head that arrives byte by byte.
    reader, writer = await site.connect()
    for _ in range(2):  # the limit applies to the second request of a connection, too
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        writer.write(HEAD)
        assert b"200 OK" in await reader.readuntil(b"}")
    await drip(writer)
    assert await site.status_code() == 200


async def test_body_that_does_not_arrive_in_time_is_answered_with_408(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "_BODY_S", 0.2)
    part = b" HTTP/1.1\r\nContent-Length: 9\r\n" + HEAD + b'{"reason'
    answers = await asyncio.gather(site.ask(b"POST /api/v1/stream/stop" + part), site.ask(b"GET /nowhere" + part))
    assert [(code_of(answer), error_of(answer)) for answer in answers] == 2 * [(408, "timeout")]
    assert site.device.reasons == []


@pytest.mark.parametrize("line", [b"POST /api/v1/stream/stop", b"GET /healthz", b"PUT /nowhere"])
async def test_large_body_is_refused_before_it_has_arrived(site: Site, line: bytes) -> None:
    large = bytes(50_000)
    for length, part in (
        (b"Content-Length: 600000000\r\n", large),
        (b"Transfer-Encoding: chunked\r\n", b"c350\r\n" + large + b"\r\n"),
    ):
        _, writer = await site.connect()
        writer.write(line + b" HTTP/1.1\r\n" + length + HEAD)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 600_000_000:
                writer.write(part)
                await writer.drain()
                sent += len(part)
        assert sent < 50_000_000
    # asyncio's reader forgets an answer that arrives before its connection breaks. A smaller body does not break it.
    answer = await site.ask(line + b" HTTP/1.1\r\nContent-Length: 16385\r\n" + HEAD + bytes(16385))
    assert (code_of(answer), error_of(answer)) == (413, "too_large")
    assert site.device.reasons == []


async def test_body_of_16_kib_in_parts_is_accepted(site: Site) -> None:
    body = b'{"reason": "night"' + b" " * (16 * 1024 - 19) + b"}"
    request = b"POST /api/v1/stream/stop HTTP/1.1\r\nConnection: close\r\n"
    answer = await site.ask(request + b"Content-Type: application/json\r\nContent-Length: 16384\r\n" + HEAD + body)
    assert code_of(answer) == 200
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    answer = await site.ask(
        request + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n" + HEAD + parts
    )
    assert code_of(answer) == 200
    assert site.device.reasons == ["night", "night"]


async def test_client_that_does_not_read_its_answer_loses_its_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_ANSWER_S", 0.3)
    lazy = []
    for _ in range(32):
        client = socket.create_connection(("127.0.0.1", site.port))
        await asyncio.get_running_loop().sock_sendall(client, b"GET /api/v1/snapshot.jpg HTTP/1.1\r\n" + HEAD)
        lazy.append(client)
        while site.device.uses < len(lazy):
            await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while await site.status_code() != 200:
            await asyncio.sleep(0.05)
    for client in lazy:
        client.close()


async def test_large_answer_is_sent_as_a_whole(site: Site) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as client:
        assert len((await client.get("/api/v1/snapshot.jpg")).content) == 12_000_000


async def test_invalid_requests_do_not_fill_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n" + HEAD
    for request, code in ((b"hello\r\n\r\n", 400), (upgrade, 200), (b"GET / HTTP/1.1\r\nX: " + bytes(20_000), 400)):
        assert code_of(await site.ask(request)) == code
    nested = b"[" * 16_000
    request = b"POST /api/v1/stream/stop HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    assert code_of(await site.ask(request + b"Content-Length: 16000\r\n" + HEAD + nested)) == 400
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_every_answer_forbids_frames_and_embedding(site: Site) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as client:
        answers = [
            await client.get("/"),
            await client.get("/api/v1/status"),
            await client.get("/nowhere"),
            await client.get("/healthz", headers={"Host": "evil.example"}),
            await client.post("/api/v1/stream/stop", headers={"Origin": "http://evil.example"}),
            await client.post("/api/v1/stream/stop", content=bytes(20_000)),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 403, 413]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in FRAMING} == FRAMING


async def test_server_without_a_file_descriptor_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    app = make_app(Device(), Device(), make_status, lambda: None, Counter())
    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(Unavailable, match="Too many open files"):
        await LocalServer(app, ApiSettings(port=8081), Counter()).run(asyncio.Event())
