"""The status as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.contract.messages import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from edge.contract.messages import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CAMERA_STATES = ("closed", "opening", "running", "failed")


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if status.camera is not None:
            camera = GaugeMetricFamily("edge_camera_state", "1 for the present state of the camera.", labels=["state"])
            for state in _CAMERA_STATES:
                camera.add_metric([state], float(status.camera.state == state))
            yield camera
            tried = status.camera.recovery
            recoveries = CounterMetricFamily(
                "edge_camera_recoveries", "Attempts to recover the camera, by remedy.", labels=["tried"]
            )
            recoveries.add_metric(["reopen"], tried.reopens)
            recoveries.add_metric(["restart"], tried.restarts)
            yield recoveries
            yield CounterMetricFamily("edge_camera_stalls", "Stalls of an open camera.", value=tried.stalls)
        if status.viewers is not None:
            yield GaugeMetricFamily("edge_viewers", "Open sessions.", value=status.viewers.connected)
            yield GaugeMetricFamily("edge_viewers_limit", "Limit of open sessions.", value=status.viewers.limit)
        if status.stream is not None:
            wanted = float(status.stream.wanted == "running")
            yield GaugeMetricFamily("edge_stream_wanted", "1 unless the stream was stopped.", value=wanted)
        if status.broker is not None:
            connected = float(status.broker.connected)
            yield GaugeMetricFamily("edge_broker_connected", "1 while the link to the broker is up.", value=connected)
        if status.vitals is not None:
            yield from _vitals(status.vitals)
        counted = CounterMetricFamily("edge_counted", "The counters of the status.", labels=["what"])
        for name, count in sorted(status.counters.items()):
            counted.add_metric([name], count)
        yield counted


def _vitals(vitals: Vitals) -> Iterator[Metric]:
    for name, field in Vitals.model_fields.items():
        value = getattr(vitals, name)
        if value is not None:
            yield GaugeMetricFamily(f"edge_vitals_{name}", field.description or "", value=float(value))


def metrics_text(status: Callable[[], Status]) -> bytes:
    """Return the metrics of one scrape in the text format."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(registry)
