"""What the running daemon says of itself over its local API."""

from __future__ import annotations

import contextlib
import json
import tomllib
import urllib.error
import urllib.request
from typing import Any

from edge_release.layout import SETTINGS


def probe(*, frame: bool = False) -> dict[str, bool]:
    """Whether it is ready, gives a picture, and has its broker. A stopped stream gives none, and is as it should be.

    `frame`: one was seen already; the camera is not opened for another.
    """
    ready, fields = fetch_json("/readyz")
    stopped = fields.get("stream") == "stopped"
    frame = frame or (ready and (stopped or one_frame()))
    return {"ready": ready, "frame": frame, "broker": fields.get("broker") == "connected"}


def one_frame() -> bool:
    """A picture of the camera, and a coded one from the encoder."""
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
