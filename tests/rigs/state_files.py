"""What the daemon's JSON files contain, with every field of each."""

from __future__ import annotations

from typing import Any

STOPPED: dict[str, Any] = {"running": False, "reason": "night", "bitrates": {"hd": 2_000_000}}
_ZOOM = {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}
_DESIRED = {"camera": {"hd": {"max_bps": 1_000_000}}, "sessions": {"max_viewers": 3}}

FILES: dict[str, dict[str, Any]] = {
    "run.json": {"end": "clean"},
    "tuning.json": {
        "confirmed": _DESIRED,
        "trial": {"desired": _DESIRED, "version": 3, "begun": False},
        "mark": "a mark",
        "version": 3,
        "outcome": {"state": "rolled_back", "version": 2, "reasons": ["too many viewers"]},
    },
    "controls.json": {"gain": 2.0, "exposure_mode": "short", "zoom": _ZOOM, "flip_vertical": True, "fps": 15},
    "wish.json": STOPPED,
    "wish.copy.json": STOPPED,
}
