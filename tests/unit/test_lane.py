"""The lane, compared step by step with a simple model."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.core.lane import Lane


class LaneModel(RuleBasedStateMachine):
    """`queued`: what the viewer will get. `decodable`: whether the viewer could decode the next delta picture."""

    @initialize(limit=st.integers(1, 4))
    def make(self, limit: int) -> None:
        self.limit = limit
        self.lane: Lane[int] = Lane(limit)
        self.queued: list[int] = []
        self.decodable = False
        self.offered = self.before_the_first_keyframe = self.delivered = 0
        self.seen_a_keyframe = False

    @rule(keyframe=st.booleans())
    def push(self, *, keyframe: bool) -> None:
        number, self.offered = self.offered, self.offered + 1
        if len(self.queued) == self.limit:
            self.queued, self.decodable = [], False
        if keyframe and len(self.queued) > self.limit // 2:
            self.queued = []
        self.seen_a_keyframe |= keyframe
        self.decodable |= keyframe
        self.before_the_first_keyframe += not self.seen_a_keyframe
        assert self.lane.push(number, keyframe=keyframe) == self.decodable
        if self.decodable:
            self.queued.append(number)

    @rule()
    def take(self) -> None:
        assert self.lane.take() == (self.queued.pop(0) if self.queued else None)
        self.delivered = self.offered - self.before_the_first_keyframe - self.lane.dropped - len(self.lane)

    @invariant()
    def bounded(self) -> None:
        if self.offered:
            assert len(self.lane) == len(self.queued) <= self.limit

    @invariant()
    def every_picture_is_counted(self) -> None:
        if self.offered:
            assert self.lane.dropped >= 0
            assert self.delivered >= 0


TestLane = LaneModel.TestCase


def test_it_starts_at_a_keyframe_and_earlier_pictures_are_not_counted_as_dropped() -> None:
    lane: Lane[str] = Lane(limit=2)
    assert not lane.push("delta", keyframe=False)
    assert lane.push("key", keyframe=True)
    assert (lane.take(), lane.take(), lane.dropped) == ("key", None, 0)


def test_a_full_lane_drops_everything_and_waits_for_a_keyframe() -> None:
    lane: Lane[str] = Lane(limit=2)
    lane.push("key 1", keyframe=True)
    lane.push("delta 1", keyframe=False)
    assert not lane.push("delta 2", keyframe=False)
    assert (len(lane), lane.dropped) == (0, 3)
    assert not lane.push("delta 3", keyframe=False)
    assert lane.push("key 2", keyframe=True)
    assert (lane.take(), lane.dropped) == ("key 2", 4)


def test_a_keyframe_clears_the_lane_only_if_it_is_more_than_half_full() -> None:
    lane: Lane[int] = Lane(limit=4)
    lane.push(0, keyframe=True)
    lane.push(1, keyframe=False)
    lane.push(2, keyframe=True)
    assert (len(lane), lane.dropped) == (3, 0)
    lane.push(3, keyframe=True)
    assert (lane.take(), lane.dropped) == (3, 3)


def test_a_full_lane_continues_from_a_keyframe() -> None:
    lane: Lane[str] = Lane(limit=1)
    lane.push("key 1", keyframe=True)
    assert lane.push("key 2", keyframe=True)
    assert (lane.take(), lane.dropped) == ("key 2", 1)
