"""The local HTTP API."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter
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
from edge.core.health import Health
from edge.errors import CameraUnavailable, Rejected, Unavailable
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.local_api.settings import ApiSettings
from tests.rigs.statuses import make_status

if TYPE_CHECKING:
    from edge.core.camera_controls import ControlValues
    from edge.core.principal import Principal

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"


class FakeCamera:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {"gain": None, "flip_vertical": False}
        self.uses = 0

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues:
        if (body.gain or 0) > 16:
            raise Rejected(Code.BAD_MESSAGE, "gain: 1 to 16")
        self.values.update(body.given())
        return self.values

    async def controls(self, caller: Principal) -> tuple[ControlValues, dict[str, Offered]]:
        self.uses += 1
        return self.values, {"gain": Offered(1.0, 16.0), "flip_vertical": Offered(default=False)}

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        self.uses += 1
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
        return make_status(
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
def camera() -> FakeCamera:
    return FakeCamera()


@pytest.fixture
def http(stream: FakeStream, camera: FakeCamera) -> httpx.AsyncClient:
    app = make_app(stream, camera, stream.status, lambda: stream.unwell, Counter())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8081")


async def test_daemon_is_healthy_and_ready_without_a_broker(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["broker"] == "not connected"


async def test_stopped_stream_is_ready_and_reported(http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/stream/stop")
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["stream"]) == (200, "stopped")


async def test_missing_camera_is_not_ready_with_a_reason(http: httpx.AsyncClient, stream: FakeStream) -> None:
    stream.camera = CameraStatus(state="failed", source="file", error="no such file")
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["trouble"]) == (503, "no such file")


async def test_device_is_not_ready_before_the_first_camera_probe(http: httpx.AsyncClient, stream: FakeStream) -> None:
    stream.camera = CameraStatus(state="closed", source=None)
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["trouble"]) == (503, "the camera process is starting")


async def test_start_and_stop_return_the_status(http: httpx.AsyncClient) -> None:
    stopped = await http.post("/api/v1/stream/stop", json={"reason": "ladder"})
    assert stopped.json()["stream"]["wanted"] == "stopped"
    started = await http.post("/api/v1/stream/start")
    assert started.json()["stream"]["wanted"] == "running"
    assert (await http.get("/api/v1/status")).json()["broker"]["error"] == "connection refused by broker:8883"


async def test_rejection_has_the_contracts_code_and_http_status(http: httpx.AsyncClient, stream: FakeStream) -> None:
    stream.refusal = Rejected(Code.RATE_LIMITED, "slowly", retry_after_s=3)
    answer = await http.post("/api/v1/stream/stop")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"] == {"code": "rate_limited", "message": "slowly", "retry_after_s": 3}


async def test_malformed_request_has_the_contracts_code(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/stream/stop", json={"reason": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_message")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:8081"}, 200),
        ({"Origin": "http://127.0.0.1:8081", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # a page on another port of localhost
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
async def test_page_of_another_site_cannot_stop_the_camera(
    http: httpx.AsyncClient, stream: FakeStream, headers: dict[str, str], status: int
) -> None:
    assert (await http.post("/api/v1/stream/stop", headers=headers)).status_code == status
    assert stream.wanted == ("stopped" if status == 200 else "running")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
    ],
)
async def test_page_of_another_site_can_only_link_to_the_page(
    http: httpx.AsyncClient, camera: FakeCamera, headers: dict[str, str]
) -> None:
    for path in ("/api/v1/snapshot.jpg", "/api/v1/camera", "/api/v1/status", "/metrics", "/healthz", "/readyz"):
        answer = await http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert camera.uses == 0
    assert (await http.get("/", headers=headers)).status_code == 200


async def test_page_loads_nothing_from_other_sites(http: httpx.AsyncClient) -> None:
    page = (await http.get("/")).text
    assert "http://" not in page
    assert "https://" not in page
    assert 'id="start"' in page
    assert 'id="stop"' in page


async def test_page_describes_every_code(http: httpx.AsyncClient) -> None:
    page = (await http.get("/")).text
    assert re.findall(r'^    (\w+): "[^"]+",$', page, re.MULTILINE) == list(Code)


async def test_server_starts_and_stops_and_reports_an_occupied_port(stream: FakeStream) -> None:
    app = make_app(stream, FakeCamera(), stream.status, lambda: None, Counter())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = asyncio.Event()
    running = asyncio.create_task(LocalServer(app, ApiSettings(port=port), Counter()).run(ready))
    await ready.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client, asyncio.timeout(5):
        while True:
            try:
                assert (await client.get("/healthz")).status_code == 200
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match=str(port)):
        await LocalServer(app, ApiSettings(port=port), Counter()).run(asyncio.Event())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_openapi_document_is_up_to_date(stream: FakeStream) -> None:
    generated = make_app(stream, FakeCamera(), stream.status, lambda: None, Counter()).openapi()
    assert json.loads(OPENAPI.read_text()) == generated, "python -m edge.local_api.openapi > docs/openapi.json"


async def test_controls_are_listed_and_set(http: httpx.AsyncClient) -> None:
    shown = (await http.get("/api/v1/camera")).json()
    assert shown["gain"] == {"value": None, "min": 1.0, "max": 16.0, "choices": []}
    changed = await http.patch("/api/v1/camera", json={"gain": 2, "flip_vertical": True})
    assert changed.json() == {"gain": 2.0, "flip_vertical": True}
    assert (await http.patch("/api/v1/camera", json={"gain": None})).json()["gain"] is None
    refused = await http.patch("/api/v1/camera", json={"gain": 20})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "gain: 1 to 16")
    assert (await http.patch("/api/v1/camera", json={"gain": "much"})).status_code == 400


async def test_snapshot_returns_a_jpeg_or_an_error(http: httpx.AsyncClient) -> None:
    picture = await http.get("/api/v1/snapshot.jpg")
    assert (picture.headers["content-type"], picture.content) == ("image/jpeg", b"JPEG None 80")
    assert (await http.get("/api/v1/snapshot.jpg?width=640&quality=50")).content == b"JPEG 640 50"
    assert (await http.get("/api/v1/snapshot.jpg?width=9")).json()["error"]["code"] == "bad_message"
    none = await http.get("/api/v1/snapshot.jpg?width=16")
    assert (none.status_code, none.json()["error"]["code"]) == (503, "camera_unavailable")


async def test_metrics_contain_recoveries_of_the_camera(http: httpx.AsyncClient, stream: FakeStream) -> None:
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


async def test_metrics_contain_only_the_available_vitals(http: httpx.AsyncClient) -> None:
    lines = (await http.get("/metrics")).text.splitlines()
    vitals = [line for line in lines if line.startswith("edge_vitals_")]
    assert vitals == [
        "edge_vitals_cpu_celsius 52.5",
        "edge_vitals_under_voltage 1.0",
        "edge_vitals_disk_free_bytes 1e+09",
    ]


async def test_unknown_paths_and_methods_have_a_code(http: httpx.AsyncClient) -> None:
    for answer in (await http.get("/nowhere"), await http.put("/api/v1/status")):
        assert answer.status_code in {404, 405}
        assert answer.json()["error"]["code"] == "bad_message"


async def test_failed_camera_process_is_named_before_the_first_probe(
    http: httpx.AsyncClient, stream: FakeStream
) -> None:
    stream.camera = CameraStatus(state="failed", source=None, error="camera process cannot be executed")
    assert (await http.get("/readyz")).json()["trouble"] == "camera process cannot be executed"


SWITCHES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/v1/stream/start", {}),
    ("POST", "/api/v1/stream/stop", {}),
]
CONTROLS: list[tuple[str, str, dict[str, Any]]] = [("PATCH", "/api/v1/camera", {"gain": 2})]


@pytest.mark.parametrize("changes", [SWITCHES, CONTROLS], ids=["start and stop", "controls"])
async def test_changes_have_a_budget_and_queries_have_none(
    stream: FakeStream, changes: list[tuple[str, str, dict[str, Any]]]
) -> None:
    counters: Counter[str] = Counter()
    now_s = 100.0
    stream.wanted = "stopped"
    app = make_app(stream, FakeCamera(), stream.status, lambda: None, counters, now_s=lambda: now_s)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8081") as http:

        async def change(number: int) -> httpx.Response:
            method, path, body = changes[number % len(changes)]
            return await http.request(method, path, json=body)

        for _ in range(20):  # changes nothing, and takes nothing from the budget
            assert (await http.patch("/api/v1/camera", json={"gain": "much"})).status_code == 400
        assert [(await change(number)).status_code for number in range(10)] == [200] * 10
        for number in range(len(changes)):
            refused = await change(number)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"] == "1"
        for path in ("/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/camera", "/api/v1/snapshot.jpg"):
            assert (await http.get(path)).status_code == 200
        now_s += 1
        assert [(await change(number)).status_code for number in range(3)] == [200, 200, 429]
        now_s += 3600
        assert [(await change(number)).status_code for number in range(11)] == [200] * 10 + [429]
    assert counters["requests_refused"] == len(changes) + 2


async def test_changes_of_controls_do_not_delay_start_and_stop(stream: FakeStream) -> None:
    app = make_app(stream, FakeCamera(), stream.status, lambda: None, Counter(), now_s=lambda: 100.0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8081") as http:
        for code in [200] * 10 + [429]:
            assert (await http.patch("/api/v1/camera", json={"gain": 2})).status_code == code
        for number in range(10):
            method, path, _ = SWITCHES[number % 2]
            assert (await http.request(method, path)).status_code == 200


async def test_stop_of_a_running_stream_is_never_refused(stream: FakeStream) -> None:
    app = make_app(stream, FakeCamera(), stream.status, lambda: None, Counter(), now_s=lambda: 100.0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8081") as http:
        # It takes from the budget.
        assert (await http.post("/api/v1/stream/stop")).status_code == 200
        for code in [200] * 9 + [429]:
            assert (await http.post("/api/v1/stream/start")).status_code == code
        assert stream.wanted == "running"
        assert (await http.post("/api/v1/stream/stop")).status_code == 200
        assert stream.wanted == "stopped"
        # Each repetition would be written to the card again.
        assert (await http.post("/api/v1/stream/stop")).status_code == 429


async def test_device_whose_local_page_fails_at_every_request_is_not_ready(stream: FakeStream) -> None:
    class Broken(FakeStream):
        async def start(self, body: StreamBody, caller: Principal) -> None:
            raise ZeroDivisionError

    counters: Counter[str] = Counter()
    health, now_s = Health(5), 0.0

    def fault() -> str | None:
        return health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters=counters)

    app = make_app(Broken(), FakeCamera(), stream.status, fault, counters)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081") as http:
        for _ in range(5):
            assert (await http.post("/api/v1/stream/start")).status_code == 500
        assert (await http.get("/readyz")).status_code == 200
        now_s = 10.0
        for _ in range(5):
            assert (await http.post("/api/v1/stream/start")).status_code == 500
        assert (await http.post("/api/v1/stream/start")).status_code == 429  # shows nothing about the bug
        ready = await http.get("/readyz")
        trouble = "the local API: every request fails because of a bug"
        assert (ready.status_code, ready.json()["trouble"]) == (503, trouble)
        assert (await http.get("/api/v1/status")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
