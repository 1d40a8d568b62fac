"""The HTTP routes: the page, the status, start and stop, camera controls, health checks and metrics."""

from __future__ import annotations

import math
import time
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from edge.contract.codes import Code
from edge.contract.messages import ControlsBody, SnapshotBody, Status, StreamBody
from edge.core.budget import Budget
from edge.core.principal import Interface, Principal
from edge.errors import EdgeError, Rejected
from edge.local_api.body_limit import BODY_BYTES, BodyLimit
from edge.local_api.connection import CONNECTIONS
from edge.local_api.faults import request_faults
from edge.local_api.metrics import CONTENT_TYPE, metrics_text
from edge.local_api.refusals import refusal

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from fastapi.responses import JSONResponse

    from edge.core.camera_controls import ControlValues, Offered

# A client of a loopback address runs on this machine, so that it has every scope.
_TECHNICIAN = Principal("technician", "local", Interface.LOCAL)
# Each change writes to the SD card and the log.
_CHANGES_PER_S = 2
_CHANGES_AT_ONCE = 10
_DESCRIPTION = f"""\
Every error has a body with the contract's code. For all paths: 403, a page of another origin sent the request; 413, its
body is larger than {BODY_BYTES} bytes; 408, its body did not arrive in time; 503 with `Retry-After`, {CONNECTIONS}
requests are in progress already. 429 with `Retry-After`: start and stop together, and apart from them changes of
controls, are limited to {_CHANGES_AT_ONCE} at once and {_CHANGES_PER_S} per second, of all clients. A stop of a running
stream is exempt."""
_OWN_FETCHES = {"same-origin", "none"}


class StreamSwitch(Protocol):
    """Starts and stops the stream, as the MQTT commands do."""

    async def start(self, body: StreamBody, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...


class CameraControls(Protocol):
    """Sets controls and takes snapshots, as the MQTT commands do."""

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues: ...

    async def controls(self, caller: Principal) -> tuple[ControlValues, dict[str, Offered]]: ...

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes: ...


class Control(BaseModel):
    """One control: its present value, and the accepted values: numbers from `min` to `max`, or one of `choices`."""

    value: Any
    min: float | None = None
    max: float | None = None
    choices: list[str] = []


class _Changes:
    """Limits one kind of changes, of all clients together."""

    def __init__(self, kind: str, now_s: Callable[[], float]) -> None:
        self._kind = kind
        self._budget = Budget(_CHANGES_PER_S, _CHANGES_AT_ONCE)
        self._now_s = now_s

    def admit(self, exempt: Callable[[], bool] = lambda: False) -> None:
        """Count one change. Raises: Rejected: `rate_limited`, it is above the limit and not exempt."""
        if not self._budget.take(self._now_s()) and not exempt():
            message = f"more than {_CHANGES_PER_S} {self._kind} per second"
            raise Rejected(Code.RATE_LIMITED, message, retry_after_s=math.ceil(self._budget.wait_s()))


def make_app(
    stream: StreamSwitch,
    camera: CameraControls,
    status: Callable[[], Status],
    fault: Callable[[], str | None],
    counters: Counter[str],
    *,
    now_s: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Make the local API. `fault` returns the fault that only a restart repairs, or None.

    `counters` counts the requests to the API, and apart from them those that are refused as `rate_limited` and those
    that fail because of a bug.
    """
    switches = _Changes("starts and stops", now_s)
    changes = _Changes("changes of controls", now_s)
    app = FastAPI(title="edge-streamer local API", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    # Another site's page in the technician's browser must not reach this API under its own host name (DNS rebinding).
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def same_origin(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        # Nor may such a page send a form, or name a picture, which opens the camera. Links may lead to the page itself.
        if request.scope["path"] != "/" and _is_foreign(request):
            return refusal(Rejected(Code.FORBIDDEN, "requests from other origins are not allowed"))
        api = request.url.path.startswith("/api/")
        try:
            response = await call_next(request)
        except Exception:
            counters["request_bugs"] += api
            raise
        # Such a refusal does not show that requests work: `Health` reads `requests`.
        limited = response.status_code == Code.RATE_LIMITED.http_status
        counters["requests_refused" if limited else "requests"] += api
        return response

    app.add_middleware(BodyLimit)

    @app.exception_handler(EdgeError)
    async def refused(_: Request, exc: EdgeError) -> JSONResponse:
        return refusal(exc)

    @app.exception_handler(HTTPException)
    async def not_served(_: Request, exc: HTTPException) -> JSONResponse:
        return refusal(Rejected(Code.BAD_MESSAGE, str(exc.detail)), status=exc.status_code)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, exc: RequestValidationError) -> JSONResponse:
        return refusal(Rejected(Code.BAD_MESSAGE, request_faults(request, exc)))

    page = resources.files("edge.local_api").joinpath("page.html").read_text()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def technician_page() -> str:
        return page

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer while the daemon's event loop runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {}})
    async def readyz(response: Response) -> dict[str, str | None]:
        """Report whether the device can stream on request. A stopped stream and a missing broker count as ready."""
        now = status()
        trouble = fault() or _camera_trouble(now)
        if trouble:
            response.status_code = 503
        return {
            "status": "not ready" if trouble else "ready",
            "trouble": trouble,
            "stream": now.stream.wanted,
            "broker": "connected" if now.broker.connected else "not connected",
        }

    @app.get("/api/v1/status")
    async def get_status() -> Status:
        """Return the present status."""
        return status()

    @app.post("/api/v1/stream/start")
    async def start(body: Annotated[StreamBody | None, Body()] = None) -> Status:
        """Admit viewers. Idempotent. Survives a restart."""
        switches.admit()
        await stream.start(body or StreamBody(reason="local page"), _TECHNICIAN)
        return status()

    @app.post("/api/v1/stream/stop")
    async def stop(body: Annotated[StreamBody | None, Body()] = None) -> Status:
        """End every session and release the camera. Idempotent. Survives a restart."""
        # No other client may prevent people from switching the camera off. This exempts one stop after each start.
        switches.admit(exempt=lambda: status().stream.wanted == "running")
        await stream.stop(body.reason if body else "local page", _TECHNICIAN)
        return status()

    @app.get("/api/v1/camera")
    async def get_controls() -> dict[str, Control]:
        """Return the camera's controls by name. Opens an idle camera."""
        values, offered = await camera.controls(_TECHNICIAN)
        return {
            name: Control(value=values[name], min=offer.lowest, max=offer.highest, choices=list(offer.choices))
            for name, offer in offered.items()
        }

    @app.patch("/api/v1/camera")
    async def set_controls(body: ControlsBody) -> dict[str, Any]:
        """Set the given controls and return the values of all. They survive a restart."""
        changes.admit()
        return await camera.set(body, _TECHNICIAN)

    @app.get("/api/v1/snapshot.jpg", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def snapshot(query: Annotated[SnapshotBody, Query()]) -> Response:
        """Take one picture. Opens an idle camera."""
        jpeg = await camera.snapshot(query, _TECHNICIAN)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the status as Prometheus metrics."""
        return Response(metrics_text(status), media_type=CONTENT_TYPE)

    return app


def _is_foreign(request: Request) -> bool:
    """Whether a page of another origin sent it, as the browser says. Other programs send neither header."""
    if request.headers.get("origin") not in {None, f"http://{request.headers.get('host')}"}:
        return True
    return request.headers.get("sec-fetch-site", "none") not in _OWN_FETCHES


def _camera_trouble(now: Status) -> str | None:
    if now.camera.state == "failed":
        return now.camera.error
    return "the camera process is starting" if now.camera.source is None else None
