"""Read the running daemon's state from its local API."""

from __future__ import annotations

import contextlib
import json
import tomllib
import urllib.error
import urllib.request
from typing import Any

from edge_release.layout import SETTINGS


def probe(*, frame: bool = False) -> dict[str, bool]:
    """Whether the daemon is ready, delivers a picture, and has its broker. A stopped stream needs no picture.

    `frame`: a picture was seen before; the camera is not opened again.
    """
    ready, fields = fetch_json("/readyz")
    stopped = fields.get("stream") == "stopped"
    frame = frame or (ready and (stopped or one_frame()))
    # Release 0.1.0 calls itself ready without a camera. The update of such a device must not need more than before.
    return {"ready": ready and frame, "frame": frame, "broker": fields.get("broker") == "connected"}


def one_frame() -> bool:
    """Whether the camera delivers a picture, and the encoder an access unit."""
    status, body = fetch("/api/v1/snapshot.jpg?width=320", 15)
    if status != 200 or not body.startswith(b"\xff\xd8"):
        return False
    _, fields = fetch_json("/api/v1/status")
    return bool((fields.get("counters") or {}).get("access_units"))


def fetch_json(path: str) -> tuple[bool, dict[str, Any]]:
    status, body = fetch(path, 5)
    with contextlib.suppress(ValueError):
        fields = json.loads(body)
        if isinstance(fields, dict):
            return status == 200, fields
    return False, {}


def fetch(path: str, timeout_s: float) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{api_port()}{path}", timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()
    except (OSError, ValueError):
        return 0, b""


def api_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        port = tomllib.loads(SETTINGS.read_text()).get("api", {}).get("port", 8081)
        if isinstance(port, int):
            return port
    return 8081
