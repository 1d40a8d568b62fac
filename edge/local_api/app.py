"""The routes: the page, what is true now, start and stop, and the two health questions."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from edge.contract.codes import Code
from edge.contract.messages import ControlsBody, ErrorInfo, SnapshotBody, Status, StreamBody
from edge.core.principal import Door, Principal
from edge.errors import EdgeError, Rejected
from edge.local_api.metrics import CONTENT_TYPE, metrics_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge.core.camera_controls import Offered, Values

# Whoever reaches a loopback address of the machine is at the machine.
_TECHNICIAN = Principal("technician", "local", Door.LOCAL)
_READS = {"GET", "HEAD", "OPTIONS"}


class Stream(Protocol):
    """Start and stop: the same use case as the MQTT commands."""

    async def start(self, body: StreamBody, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...


class CameraUse(Protocol):
    """The camera for a moment: the same use case as the MQTT commands."""

    async def set(self, body: ControlsBody, caller: Principal) -> Values: ...

    async def controls(self, caller: Principal) -> tuple[Values, dict[str, Offered]]: ...

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes: ...


class Control(BaseModel):
    """One control: its value in force, and what the camera takes: numbers from `min` to `max`, or one of `choices`."""

    value: Any
    min: float | None = None
    max: float | None = None
    choices: list[str] = []


def make_app(
    stream: Stream, camera: CameraUse, status: Callable[[], Status], unwell: Callable[[], str | None]
) -> FastAPI:
    """The local API. `unwell` says what is not well, None while all is."""
    app = FastAPI(title="edge-streamer local API", version="1", docs_url=None, redoc_url=None)
    # A page of another site in the technician's browser must not reach this one by a name of its own (DNS rebinding),
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def same_origin(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        # nor post a form to it.
        origin = request.headers.get("origin")
        if request.method not in _READS and origin and urlsplit(origin).netloc != request.headers.get("host"):
            return _refusal(Rejected(Code.FORBIDDEN, "this page may only be used from itself"))
        return await call_next(request)

    @app.exception_handler(EdgeError)
    async def refused(_: Request, exc: EdgeError) -> JSONResponse:
        return _refusal(exc)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, exc: RequestValidationError) -> JSONResponse:
        fault = exc.errors()[0]
        return _refusal(Rejected(Code.BAD_MESSAGE, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"))

    page = resources.files("edge.local_api").joinpath("page.html").read_text()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def technician_page() -> str:
        return page

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The daemon lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {}})
    async def readyz(response: Response) -> dict[str, str | None]:
        """Whether it can stream if asked. Stopped and brokerless count as ready and are named."""
        now = status()
        trouble = unwell() or (now.camera.error if now.camera and now.camera.state == "failed" else None)
        if trouble:
            response.status_code = 503
        return {
            "status": "not ready" if trouble else "ready",
            "trouble": trouble,
            "stream": now.stream.wanted if now.stream else None,
            "broker": "connected" if now.broker and now.broker.connected else "not connected",
        }

    @app.get("/api/v1/status")
    async def get_status() -> Status:
        """What is true now."""
        return status()

    @app.post("/api/v1/stream/start")
    async def start(body: Annotated[StreamBody | None, Body()] = None) -> Status:
        """Let viewers in. Idempotent; holds over a restart."""
        await stream.start(body or StreamBody(reason="local page"), _TECHNICIAN)
        return status()

    @app.post("/api/v1/stream/stop")
    async def stop(body: Annotated[StreamBody | None, Body()] = None) -> Status:
        """End every session and release the camera. Idempotent; holds over a restart."""
        await stream.stop(body.reason if body else "local page", _TECHNICIAN)
        return status()

    @app.get("/api/v1/camera")
    async def get_controls() -> dict[str, Control]:
        """The camera's controls by name, as it has them; opened for it where nobody watches."""
        values, offered = await camera.controls(_TECHNICIAN)
        return {
            name: Control(value=values[name], min=offer.lowest, max=offer.highest, choices=list(offer.choices))
            for name, offer in offered.items()
        }

    @app.patch("/api/v1/camera")
    async def set_controls(body: ControlsBody) -> dict[str, Any]:
        """Set what is given; the values in force of all. They survive a restart."""
        return await camera.set(body, _TECHNICIAN)

    @app.get("/api/v1/snapshot.jpg", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def snapshot(wanted: Annotated[SnapshotBody, Query()]) -> Response:
        """One picture, from the running camera or from one that is opened for it."""
        jpeg = await camera.snapshot(wanted, _TECHNICIAN)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """The status for Prometheus."""
        return Response(metrics_text(status), media_type=CONTENT_TYPE)

    return app


def _refusal(error: EdgeError) -> JSONResponse:
    retry_after_s = getattr(error, "retry_after_s", None)
    info = ErrorInfo(code=error.code, message=error.message, retry_after_s=retry_after_s)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return JSONResponse({"error": info.model_dump(mode="json")}, status_code=error.code.http_status, headers=headers)
