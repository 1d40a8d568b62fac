"""The technician's door."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from edge.contract.codes import Code
from edge.contract.messages import (
    BrokerStatus,
    CameraStatus,
    ControlsBody,
    RecoveryStatus,
    SnapshotBody,
    Status,
    StreamBody,
    StreamStatus,
    ViewersStatus,
    Vitals,
)
from edge.core.camera_controls import Offered
from edge.errors import CameraUnavailable, Rejected, Unavailable
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.local_api.settings import ApiSettings

if TYPE_CHECKING:
    from edge.core.camera_controls import Values
    from edge.core.principal import Principal

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"


class FakeCamera:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {"gain": None, "flip_vertical": False}

    async def set(self, body: ControlsBody, caller: Principal) -> Values:
        if (body.gain or 0) > 16:
            raise Rejected(Code.BAD_MESSAGE, "gain: 1 to 16")
        self.values.update(body.given())
        return self.values

    async def controls(self, caller: Principal) -> tuple[Values, dict[str, Offered]]:
        return self.values, {"gain": Offered(1.0, 16.0), "flip_vertical": Offered(default=False)}

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        if body.width == 16:
            raise CameraUnavailable("no camera found: look at its cable")
        return f"JPEG {body.width} {body.quality}".encode()


class FakeStream:
    def __init__(self) -> None:
        self.wanted = "running"
        self.camera = CameraStatus(state="closed", source="synthetic")
        self.unwell: str | None = None
        self.refusal: Rejected | None = None

    async def start(self, body: StreamBody, caller: Principal) -> None:
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
            vitals=Vitals(cpu_celsius=52.5, under_voltage=True, disk_free_bytes=10**9),
        )


@pytest.fixture
def stream() -> FakeStream:
    return FakeStream()


@pytest.fixture
def http(stream: FakeStream) -> httpx.AsyncClient:
    app = make_app(stream, FakeCamera(), stream.status, lambda: stream.unwell)
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
    app = make_app(stream, FakeCamera(), stream.status, lambda: None)
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
    made = make_app(stream, FakeCamera(), stream.status, lambda: None).openapi()
    assert json.loads(OPENAPI.read_text()) == made, "python -m edge.local_api.openapi > docs/openapi.json"


async def test_the_cameras_controls_are_shown_and_set(http: httpx.AsyncClient) -> None:
    shown = (await http.get("/api/v1/camera")).json()
    assert shown["gain"] == {"value": None, "min": 1.0, "max": 16.0, "choices": []}
    changed = await http.patch("/api/v1/camera", json={"gain": 2, "flip_vertical": True})
    assert changed.json() == {"gain": 2.0, "flip_vertical": True}
    assert (await http.patch("/api/v1/camera", json={"gain": None})).json()["gain"] is None
    refused = await http.patch("/api/v1/camera", json={"gain": 20})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "gain: 1 to 16")
    assert (await http.patch("/api/v1/camera", json={"gain": "much"})).status_code == 400


async def test_a_snapshot_is_a_picture(http: httpx.AsyncClient) -> None:
    picture = await http.get("/api/v1/snapshot.jpg")
    assert (picture.headers["content-type"], picture.content) == ("image/jpeg", b"JPEG None 80")
    assert (await http.get("/api/v1/snapshot.jpg?width=640&quality=50")).content == b"JPEG 640 50"
    assert (await http.get("/api/v1/snapshot.jpg?width=9")).json()["error"]["code"] == "bad_message"
    none = await http.get("/api/v1/snapshot.jpg?width=16")
    assert (none.status_code, none.json()["error"]["code"]) == (503, "camera_unavailable")


async def test_metrics_tell_what_was_tried_for_the_camera(http: httpx.AsyncClient, stream: FakeStream) -> None:
    recovery = RecoveryStatus(stalls=3, reopens=2, restarts=1, last="restart", why="no picture")
    stream.camera = CameraStatus(state="failed", source="picamera2", error="no picture", recovery=recovery)
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'edge_camera_state{state="failed"} 1.0' in lines
    assert 'edge_camera_recoveries_total{tried="reopen"} 2.0' in lines
    assert 'edge_camera_recoveries_total{tried="restart"} 1.0' in lines
    assert "edge_camera_stalls_total 3.0" in lines
    assert "edge_broker_connected 0.0" in lines


async def test_metrics_tell_the_vitals_that_the_machine_has(http: httpx.AsyncClient) -> None:
    lines = (await http.get("/metrics")).text.splitlines()
    told = [line for line in lines if line.startswith("edge_vitals_")]
    assert told == [
        "edge_vitals_cpu_celsius 52.5",
        "edge_vitals_under_voltage 1.0",
        "edge_vitals_disk_free_bytes 1e+09",
    ]
