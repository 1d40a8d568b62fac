"""The lane, step by step against a model that says the same in the plainest words."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.core.lane import Lane


class LaneBesideItsModel(RuleBasedStateMachine):
    """`queued` is what a viewer will get; `decodable` whether the next delta picture would make sense to it."""

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
    def every_picture_is_accounted_for(self) -> None:
        if self.offered:
            assert self.lane.dropped >= 0
            assert self.delivered >= 0


TestLane = LaneBesideItsModel.TestCase


def test_it_starts_at_a_keyframe_and_what_came_before_is_no_drop() -> None:
    lane: Lane[str] = Lane(limit=2)
    assert not lane.push("delta", keyframe=False)
    assert lane.push("key", keyframe=True)
    assert (lane.take(), lane.take(), lane.dropped) == ("key", None, 0)


def test_a_full_lane_gives_up_what_it_holds_and_waits_for_the_next_keyframe() -> None:
    lane: Lane[str] = Lane(limit=2)
    lane.push("key 1", keyframe=True)
    lane.push("delta 1", keyframe=False)
    assert not lane.push("delta 2", keyframe=False)
    assert (len(lane), lane.dropped) == (0, 3)
    assert not lane.push("delta 3", keyframe=False)
    assert lane.push("key 2", keyframe=True)
    assert (lane.take(), lane.dropped) == ("key 2", 4)


def test_one_that_is_far_behind_goes_on_from_a_keyframe_and_one_that_is_not_misses_nothing() -> None:
    lane: Lane[int] = Lane(limit=4)
    lane.push(0, keyframe=True)
    lane.push(1, keyframe=False)
    lane.push(2, keyframe=True)
    assert (len(lane), lane.dropped) == (3, 0)
    lane.push(3, keyframe=True)
    assert (lane.take(), lane.dropped) == (3, 3)


def test_a_keyframe_into_a_full_lane_is_where_it_goes_on() -> None:
    lane: Lane[str] = Lane(limit=1)
    lane.push("key 1", keyframe=True)
    assert lane.push("key 2", keyframe=True)
    assert (lane.take(), lane.dropped) == ("key 2", 1)
