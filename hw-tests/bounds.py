"""What each board has to hold, in one table.

Only "other" was ever run, on a shared x86 machine with two cores and libcamera's virtual camera: those bounds are far
above what it showed, so that they tell a fault and not a busy machine. The rows of the Raspberry Pis are estimates:
nobody has run this on one yet. Who does, puts what was measured, and a margin, in their place.

The estimates come from what is known of the boards: one core runs Python roughly 2 (Pi 4), 6 (Pi 3) and 8 times
(Zero 2 W) slower than a Pi 5's; V4L2 hardware encodes on all but the Pi 5, which has libx264 alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """All at 1280x720, 30 fps and at most 2 Mbit/s. The defaults are of every Raspberry Pi: speed is what differs."""

    board: str
    models: str
    """A pattern for what /proc/device-tree/model says."""
    estimate: bool = True
    encoders: tuple[str, ...]

    frame_rate: float = 0.98
    """Least share of the frames asked for: sensors round a frame's duration to whole lines, by up to a percent."""
    missed_percent: float = 0.5
    """Most pictures that are not there: nine in a minute, for an SD card's hiccups."""
    dropped_units: int = 0
    """What the camera process threw away, since the daemon did not read: nothing here keeps it from reading."""
    snapshot_frame_rate: float = 0.9
    """While snapshots are taken, which occupy a core for as long as they take to encode."""
    latency_p50_ms: float
    """From the first line that is read out: up to 33 ms of readout, 10 to 15 in the ISP, 10 to 20 in either encoder;
    the rest for Python."""
    latency_p95_ms: float
    """One more frame interval."""
    keyframe_intervals: float = 2
    """Worst of ten: the picture that is under way, and the next one."""
    bitrate_share: float = 0.5
    """Of the bitrate before; a third is ordered."""
    snapshot_ms: float
    """28 ms on x86, half of which is waiting for the next frame; the rest is one core's work."""
    recovery_s: float
    """0.4 s on x86; on a small board importing picamera2 alone takes seconds, see `SPAWN_TIMEOUT_S`."""
    cold_ms: float
    """The first picture of a camera that was closed. A Pi 5's is what the project aims at, see bench/first_frame.py."""
    warm_ms: float
    """Of a camera that is open; aimed at alike. The viewer's own handshake is this board's work too."""
    cpu_idle_percent: float
    """Daemon and camera process in percent of one core, nobody watching, the camera closed: a wake-up a second."""
    cpu_one_percent: float
    cpu_five_percent: float
    """A further viewer: 0.5 % on x86 at 1 Mbit/s, so 1 % at 2; on a small board ten times that."""
    temperature_c: float = 80
    """Where the firmware begins to slow the processor down (Raspberry Pi documentation, "Frequency management")."""
    growth_mb: float = 10
    """Of RSS over a soak, after its warm-up: allocators keep some."""
    growth_count: int = 2
    """Of descriptors and of threads: one of each may be on its way out when they are counted."""


BOARDS = (
    Bounds(
        board="Zero 2 W",
        models=r"Raspberry Pi Zero 2",
        encoders=("v4l2",),
        missed_percent=1,  # 512 MB: it may swap
        latency_p50_ms=90,
        latency_p95_ms=125,
        snapshot_ms=600,
        recovery_s=10,
        cold_ms=3000,
        warm_ms=1200,
        cpu_idle_percent=10,
        cpu_one_percent=110,
        cpu_five_percent=220,
    ),
    Bounds(
        board="3",
        models=r"Raspberry Pi (3|Compute Module 3)",
        encoders=("v4l2",),
        latency_p50_ms=90,
        latency_p95_ms=125,
        snapshot_ms=500,
        recovery_s=8,
        cold_ms=2500,
        warm_ms=900,
        cpu_idle_percent=8,
        cpu_one_percent=90,
        cpu_five_percent=180,
    ),
    Bounds(
        board="4",
        models=r"Raspberry Pi (4|Compute Module 4)",
        encoders=("v4l2",),
        latency_p50_ms=75,
        latency_p95_ms=110,
        snapshot_ms=300,
        recovery_s=5,
        cold_ms=1500,
        warm_ms=500,
        cpu_idle_percent=5,
        cpu_one_percent=60,
        cpu_five_percent=100,
    ),
    Bounds(
        board="5",
        models=r"Raspberry Pi (5|Compute Module 5)",
        encoders=("libx264",),
        latency_p50_ms=70,
        latency_p95_ms=105,
        snapshot_ms=200,
        recovery_s=3,
        cold_ms=1000,
        warm_ms=300,
        cpu_idle_percent=3,
        cpu_one_percent=80,  # libx264 is most of it: 15 % on x86
        cpu_five_percent=110,
    ),
)

OTHER = Bounds(
    board="other",
    models="",
    estimate=False,
    encoders=("v4l2", "libx264"),
    frame_rate=0.8,
    missed_percent=20,
    dropped_units=60,
    snapshot_frame_rate=0.6,
    latency_p50_ms=150,
    latency_p95_ms=500,
    keyframe_intervals=6,
    bitrate_share=0.7,
    snapshot_ms=1000,
    recovery_s=20,
    cold_ms=8000,
    warm_ms=4000,
    cpu_idle_percent=30,
    cpu_one_percent=150,
    cpu_five_percent=180,
    temperature_c=100,
    growth_mb=20,
    growth_count=3,
)


def bounds_of(model: str) -> Bounds:
    """Those of a board; generous ones where it is none of them."""
    return next((bounds for bounds in BOARDS if re.match(bounds.models, model)), OTHER)
