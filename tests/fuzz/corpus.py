"""The inputs that fuzzing starts from: the committed seeds and the recorded offers."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"
OFFERS = HERE.parent / "offers"
_AS_COMMANDS = {"chrome", "firefox", "safari"}
EXPIRES_AT = "2026-11-20T12:00:30Z"


def corpus() -> dict[str, bytes]:
    """Inputs by name."""
    found = {path.name: path.read_bytes() for path in sorted(SEEDS.iterdir())}
    for path in sorted(OFFERS.glob("*.sdp")):
        sdp = path.read_text().replace("\n", "\r\n")
        offer = {"v": 1, "id": "1", "type": "session.offer", "expires_at": EXPIRES_AT}
        command = {**offer, "reply_to": "edge/v1/cam-1/reply/bff-1", "body": {"sdp": sdp, "session": "s1"}}
        found[path.name] = b"s" + sdp.encode()
        if path.stem in _AS_COMMANDS:
            found[f"{path.name}.command"] = b"o" + json.dumps(command).encode()
    return found
