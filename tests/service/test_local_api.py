"""The technician's door."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from edge.contract.codes import Code
from edge.contract.messages import BrokerStatus, CameraStatus, Status, StreamStatus, ViewersStatus
from edge.errors import Rejected, Unavailable
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.local_api.settings import ApiSettings

if TYPE_CHECKING:
    from edge.core.principal import Principal

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"


class FakeStream:
    def __init__(self) -> None:
        self.wanted = "running"
        self.camera = CameraStatus(state="closed", source="synthetic")
        self.unwell: str | None = None
        self.refusal: Rejected | None = None

    async def start(self, reason: str | None, caller: Principal) -> None:
        self.wanted = "running"

    async def stop(self, reason: str | None, caller: Principal) -> None:
        if self.refusal:
            raise self.refusal
        self.wanted = "stopped"

    def status(self) -> Status:
        return Status(
            device="cam-1",
            online=True,
            at=datetime.now(UTC),
            stream=StreamStatus.model_validate({"wanted": self.wanted}),
            camera=self.camera,
            viewers=ViewersStatus(connected=0, limit=5),
            broker=BrokerStatus(connected=False, error="connection refused by broker:8883"),
        )


@pytest.fixture
def stream() -> FakeStream:
    return FakeStream()


@pytest.fixture
def http(stream: FakeStream) -> httpx.AsyncClient:
    app = make_app(stream, stream.status, lambda: stream.unwell)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8081")


async def test_it_lives_and_is_ready_without_a_broker(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["broker"] == "not connected"


async def test_stopped_counts_as_ready_and_is_named(http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/stream/stop")
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["stream"]) == (200, "stopped")


async def test_no_camera_is_not_ready_and_says_why(http: httpx.AsyncClient, stream: FakeStream) -> None:
    stream.camera = CameraStatus(state="failed", source="file", error="no such file")
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["trouble"]) == (503, "no such file")


async def test_start_and_stop_answer_with_the_status(http: httpx.AsyncClient) -> None:
    stopped = await http.post("/api/v1/stream/stop", json={"reason": "ladder"})
    assert stopped.json()["stream"]["wanted"] == "stopped"
    started = await http.post("/api/v1/stream/start")
    assert started.json()["stream"]["wanted"] == "running"
    assert (await http.get("/api/v1/status")).json()["broker"]["error"] == "connection refused by broker:8883"


async def test_a_refusal_has_the_contracts_code_and_status(http: httpx.AsyncClient, stream: FakeStream) -> None:
    stream.refusal = Rejected(Code.RATE_LIMITED, "slowly", retry_after_s=3)
    answer = await http.post("/api/v1/stream/stop")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"] == {"code": "rate_limited", "message": "slowly", "retry_after_s": 3}


async def test_a_malformed_request_has_the_contracts_code(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/stream/stop", json={"reason": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_message")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Origin": "http://127.0.0.1:8081"}, 200),
    ],
)
async def test_a_page_of_another_site_cannot_stop_the_camera(
    http: httpx.AsyncClient, stream: FakeStream, headers: dict[str, str], status: int
) -> None:
    assert (await http.post("/api/v1/stream/stop", headers=headers)).status_code == status
    assert stream.wanted == ("stopped" if status == 200 else "running")


async def test_the_page_needs_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = (await http.get("/")).text
    assert "http://" not in page
    assert "https://" not in page
    assert 'id="start"' in page
    assert 'id="stop"' in page


async def test_the_server_serves_and_stops_and_says_when_its_port_is_taken(stream: FakeStream) -> None:
    app = make_app(stream, stream.status, lambda: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = asyncio.Event()
    running = asyncio.create_task(LocalServer(app, ApiSettings(port=port)).run(ready))
    await ready.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client, asyncio.timeout(5):
        while True:
            try:
                assert (await client.get("/healthz")).status_code == 200
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match=str(port)):
        await LocalServer(app, ApiSettings(port=port)).run(asyncio.Event())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_the_openapi_document_is_that_of_the_code(stream: FakeStream) -> None:
    made = make_app(stream, stream.status, lambda: None).openapi()
    assert json.loads(OPENAPI.read_text()) == made, "python -m edge.local_api.openapi > docs/openapi.json"
