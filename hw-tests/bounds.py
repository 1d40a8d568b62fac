from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    board: str
    models: str
    estimate: bool
    encoders: tuple[str, ...]
    frame_rate: float
    snapshot_frame_rate: float
    missed_percent: float
    dropped_units: int
    latency_p50_ms: float
    latency_p95_ms: float
    keyframe_intervals: float
    bitrate_share: float
    snapshot_ms: float
    recovery_s: float
    cold_ms: float
    warm_ms: float
    cpu_idle_percent: float
    cpu_one_percent: float
    cpu_five_percent: float
    temperature_c: float
    growth_mb: float
    growth_count: int


OTHER = Bounds(
    board="other", models=".*", estimate=False, encoders=("v4l2", "libx264"),
    frame_rate=0.8, snapshot_frame_rate=0.6, missed_percent=20, dropped_units=60, latency_p50_ms=150, latency_p95_ms=500, keyframe_intervals=6,
    bitrate_share=0.7, snapshot_ms=1000, recovery_s=20, cold_ms=8000, warm_ms=4000, cpu_idle_percent=50, cpu_one_percent=200, cpu_five_percent=300,
    temperature_c=100, growth_mb=20, growth_count=3,
)

def bounds_of(model: str) -> Bounds:
    return OTHER
