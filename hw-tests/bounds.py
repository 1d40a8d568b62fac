"""The bounds for each board, in one table.

Only "other" has been run, on a shared x86 machine with two cores and libcamera's virtual camera. Its bounds are far
above the measured values, so that a busy machine does not fail. The rows of the Raspberry Pis are estimates, because
nobody has run these tests on one yet. After a run, replace the estimates with the measured values and a margin.

The estimates use known properties of the boards. One core runs Python about 2 (Pi 4), 6 (Pi 3) and 8 times (Zero 2 W)
slower than a core of a Pi 5. All boards encode with V4L2 hardware except the Pi 5, which has only libx264.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """All values at 1280x720, 30 fps and at most 2 Mbit/s. Defaults hold for every Raspberry Pi; speeds differ."""

    board: str
    models: str
    """A regular expression for the content of /proc/device-tree/model."""
    estimate: bool = True
    encoders: tuple[str, ...]

    frame_rate: float = 0.98
    """Minimum share of the configured rate. Sensors round a frame's duration to whole lines, by up to one percent."""
    missed_percent: float = 0.5
    """Maximum share of missing pictures: nine in a minute, to allow for delays of an SD card."""
    dropped_units: int = 0
    """Access units that the camera process dropped because the daemon did not read them. Here, it always reads."""
    snapshot_frame_rate: float = 0.9
    """The same share while snapshots are taken. Encoding a snapshot occupies one core."""
    latency_p50_ms: float
    """Measured from the readout of the first line. Readout takes up to 33 ms, the ISP 10 to 15 ms, either encoder 10
    to 20 ms; the rest is Python."""
    latency_p95_ms: float
    """The median plus one frame interval."""
    keyframe_intervals: float = 2
    """Maximum of ten requests: the picture in progress and the next one."""
    bitrate_share: float = 0.5
    """Maximum share of the earlier bitrate, after a third of it was requested."""
    snapshot_ms: float
    """28 ms on x86: half is waiting for the next frame, the rest is work on one core."""
    recovery_s: float
    """0.4 s on x86. On a small board, importing picamera2 alone takes seconds; see `SPAWN_TIMEOUT_S`."""
    cold_ms: float
    """Time to the first picture with the camera closed. The value of the Pi 5 is the project's goal; see
    bench/first_frame.py."""
    warm_ms: float
    """The same with the camera open. The viewer also runs on this board, so its handshake is included."""
    cpu_idle_percent: float
    """Daemon and camera process in percent of one core, without viewers and with the camera closed: one wake-up per
    second."""
    cpu_one_percent: float
    cpu_five_percent: float
    """Each further viewer: 0.5 % on x86 at 1 Mbit/s, so 1 % at 2 Mbit/s; ten times that on a small board."""
    temperature_c: float = 80
    """The firmware throttles the processor above this (Raspberry Pi documentation, "Frequency management")."""
    growth_mb: float = 10
    """Maximum growth of RSS over a soak, after the warm-up: allocators keep some memory."""
    growth_count: int = 2
    """Maximum growth of descriptors and of threads: one of each may be closing when they are counted."""


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
        cpu_one_percent=80,  # mostly libx264: 15 % on x86
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
    """The bounds of a board; those of `OTHER` if the model is unknown."""
    return next((bounds for bounds in BOARDS if re.match(bounds.models, model)), OTHER)
