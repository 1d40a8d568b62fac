"""Pacing with aiortc's receiver-side bandwidth estimator (Chromium's former one), in simulated time."""

from __future__ import annotations

import heapq
import itertools
from typing import NamedTuple

import pytest
from aiortc.rate import RemoteBitrateEstimator

from edge.core.lane import Lane
from edge.core.pacing import EncodeRate, Pacer, PathEstimate

FRAME_S = 1 / 30
PACKET_BYTES = 1180
QUEUE_S = 0.3
"""The router's queue on the narrow path; packets that would wait longer are lost."""


class Event(NamedTuple):
    at_s: float
    order: int
    kind: str
    sent_s: float = 0.0
    size_bytes: int = 0


class Viewer:
    """The sender's rules, a path, and a receiver that reports its estimates."""

    def __init__(self, path_bps: float, keyframe_times: int) -> None:
        self.path_bps, self.keyframe_times = path_bps, keyframe_times
        self.estimate, self.pacer, self.rate = PathEstimate(), Pacer(FRAME_S), EncodeRate()
        self.lane: Lane[int] = Lane(8)
        self.receiver = RemoteBitrateEstimator()
        self.events: list[Event] = []
        self.order = itertools.count()
        self.unsent, self.timer = 0, False
        self.sent_bytes = self.lost_bytes = self.delivered = 0
        self.free_s = 0.0
        self.reported = 0.0, 0, 0
        self.next_keyframe_s = 0.0

    def run(self, seconds: float, encode_bps: float, begin_s: float) -> tuple[int, int]:
        """Return how many pictures were delivered and dropped in this time."""
        delivered, dropped = self.delivered, self.lane.dropped
        for number in range(round(seconds * 30)):
            self._later(begin_s + number * FRAME_S, "picture")
        end_s = begin_s + seconds
        while self.events and self.events[0].at_s < end_s:
            event = heapq.heappop(self.events)
            if event.kind == "picture":
                self._picture(encode_bps, event.at_s)
            elif event.kind == "timer":
                self.timer = False
                self._send(event.at_s)
            else:
                self._received(event)
        return self.delivered - delivered, self.lane.dropped - dropped

    def _picture(self, encode_bps: float, now_s: float) -> None:
        keyframe = now_s >= self.next_keyframe_s
        if keyframe:
            self.next_keyframe_s = now_s + 4
        size_bytes = int(encode_bps / 8 * FRAME_S * (self.keyframe_times if keyframe else 1))
        if not keyframe:
            self.rate.add(size_bytes, now_s)
        on_way = self.lane.push(size_bytes, keyframe=keyframe)
        if not self.timer:
            self._send(now_s)
        if not on_way and not self.timer:
            self.next_keyframe_s = min(self.next_keyframe_s, now_s + 1)

    def _send(self, now_s: float) -> None:
        while True:
            if not self.unsent:
                size_bytes = self.lane.take()
                if size_bytes is None:
                    return
                self.pacer.set_path(self.estimate.bps(now_s))
                self.pacer.begin(size_bytes, now_s)
                self.unsent = size_bytes
            while self.unsent:
                if self.pacer.room_bytes(now_s) <= 0:
                    self.timer = True
                    self._later(now_s + max(self.pacer.wait_s(), 1e-6), "timer")
                    return
                packet_bytes = min(PACKET_BYTES, self.unsent)
                self.unsent -= packet_bytes
                self.pacer.sent(packet_bytes)
                self.sent_bytes += packet_bytes
                begun_s = max(now_s, self.free_s)
                if begun_s - now_s < QUEUE_S:
                    self.free_s = begun_s + packet_bytes * 8 / self.path_bps
                    self._later(self.free_s + 0.01, "received", now_s, packet_bytes)
                else:
                    self.lost_bytes += packet_bytes
            self.delivered += 1

    def _received(self, event: Event) -> None:
        send_time = int(event.sent_s * (1 << 18)) & 0xFFFFFF
        if event.at_s - self.reported[0] >= 1:
            _, sent_bytes, lost_bytes = self.reported
            self.estimate.report_loss((self.lost_bytes - lost_bytes) / max(1, self.sent_bytes - sent_bytes))
            self.reported = event.at_s, self.sent_bytes, self.lost_bytes
        estimates = self.receiver.add(int(event.at_s * 1000), send_time, event.size_bytes, 1)
        if estimates:
            self.estimate.update(estimates[0], sent_bytes=self.sent_bytes, encode_bps=self.rate.bps, now_s=event.at_s)

    def _later(self, at_s: float, kind: str, sent_s: float = 0.0, size_bytes: int = 0) -> None:
        heapq.heappush(self.events, Event(at_s, next(self.order), kind, sent_s, size_bytes))


@pytest.mark.parametrize("keyframe_times", [3, 6, 12])
@pytest.mark.parametrize("quiet_bps", [200_000, 400_000, 1_000_000])
def test_a_scene_that_becomes_busy_is_not_mistaken_for_a_narrow_path(quiet_bps: int, keyframe_times: int) -> None:
    viewer = Viewer(1e9, keyframe_times)
    assert viewer.run(30, quiet_bps, 0)[1] == 0
    assert viewer.run(30, 4_000_000, 30) == (900, 0)


@pytest.mark.parametrize("path_bps", [500_000, 1_000_000, 2_000_000])
def test_a_narrow_path_is_neither_flooded_nor_idle(path_bps: int) -> None:
    viewer = Viewer(path_bps, 5)
    viewer.run(20, 4_000_000, 0)
    sent_bytes, lost_bytes = viewer.sent_bytes, viewer.lost_bytes
    delivered, _ = viewer.run(40, 4_000_000, 20)
    sent_bps = 8 * (viewer.sent_bytes - sent_bytes) / 40
    assert delivered > 15
    assert 0.2 * path_bps < sent_bps < 2.2 * path_bps
    # Twice the estimate is sent; the router loses what exceeds the path's rate.
    assert viewer.lost_bytes - lost_bytes < 0.6 * (viewer.sent_bytes - sent_bytes)


def test_a_path_that_widens_again_is_used_fully() -> None:
    viewer = Viewer(1_000_000, 5)
    viewer.run(30, 4_000_000, 0)
    viewer.path_bps = 1e9
    viewer.run(60, 4_000_000, 30)
    assert viewer.run(20, 4_000_000, 90) == (600, 0)
