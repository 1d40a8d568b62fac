"""When the camera process is started, probed, opened, closed and killed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.camera.lifecycle import (
    PROBE_TIMEOUT_S,
    REOPEN_TIMEOUT_S,
    SPAWN_TIMEOUT_S,
    STOP_TIMEOUT_S,
    STUCK_LIMIT,
    TRIES,
    Effect,
    Lifecycle,
    ProcessPhase,
    Remedy,
)
from edge.camera.port import CameraMissing, CameraState, Opening
from edge.contract.codes import Code
from edge.core.access_unit import StreamFormat
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

OPENING = Opening(StreamFormat(1280, 720, 30.0, "42c01f", "libx264"))
MISSING = CameraMissing("no camera found")
FAULT = CameraUnavailable("the sensor is hot")


def idle(now_s: float = 0.0) -> Lifecycle:
    life = Lifecycle(open_timeout_s=5.0, stall_s=2.0, draw=lambda: 0.999)
    assert life.step(now_s) is Effect.SPAWN
    life.ready(now_s)
    return life


def running(now_s: float = 0.0) -> Lifecycle:
    life = idle(now_s)
    life.want(now_s, wanted=True)
    assert life.step(now_s) is Effect.START
    life.opened(OPENING, now_s)
    assert life.state is CameraState.RUNNING
    return life


def test_the_process_is_kept_and_the_camera_is_opened_only_when_wanted() -> None:
    life = idle()
    assert life.step(1.0) is None
    states = [life.state]
    life.want(1.0, wanted=True)
    states.append(life.state)
    assert states == [CameraState.CLOSED, CameraState.OPENING]
    assert life.step(1.0) is Effect.START


def test_a_camera_that_is_no_longer_wanted_is_closed_and_the_process_stays() -> None:
    life = running()
    life.want(1.0, wanted=False)
    assert life.step(1.0) is Effect.STOP
    assert life.opening is None
    life.closed(1.2)
    assert (life.phase, life.state, life.step(1.3)) == (ProcessPhase.IDLE, CameraState.CLOSED, None)


def test_a_camera_that_is_wanted_again_while_it_closes_is_opened_afterwards() -> None:
    life = running()
    life.want(1.0, wanted=False)
    assert life.step(1.0) is Effect.STOP
    life.want(1.1, wanted=True)
    assert life.step(1.1) is None
    life.closed(1.2)
    assert life.step(1.2) is Effect.START


def test_new_settings_close_and_open_the_camera_without_counting_as_a_failure() -> None:
    life = running()
    life.reconfigure(1.0)
    assert life.step(1.0) is Effect.STOP
    assert life.state is CameraState.OPENING
    life.closed(1.1)
    assert life.step(1.1) is Effect.START
    life.opened(OPENING, 1.2)
    assert (life.step(1.2), life.reopens, life.failures, life.error) == (None, 0, 0, None)


def test_new_settings_while_the_camera_opens_open_it_once_more() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    assert life.step(0.0) is Effect.START
    life.reconfigure(0.1)
    assert life.step(0.1) is None
    life.opened(OPENING, 0.2)
    assert life.step(0.2) is Effect.STOP
    life.closed(0.3)
    assert life.step(0.3) is Effect.START
    life.opened(OPENING, 0.4)
    assert life.step(0.4) is None


def test_new_settings_of_an_idle_camera_change_nothing_until_it_is_wanted() -> None:
    life = idle()
    life.reconfigure(1.0)
    assert life.step(1.0) is None
    life.want(1.5, wanted=True)
    assert life.step(1.5) is Effect.START


@pytest.mark.parametrize(
    "phase", [ProcessPhase.STARTING, ProcessPhase.PROBING, ProcessPhase.OPENING, ProcessPhase.CLOSING]
)
def test_every_wait_for_the_process_has_a_deadline(phase: ProcessPhase) -> None:
    begun_s = 0.0
    if phase is ProcessPhase.STARTING:
        life = Lifecycle(5.0, 2.0, lambda: 0.5)
        assert life.step(0.0) is Effect.SPAWN
        timeout_s = SPAWN_TIMEOUT_S
    elif phase is ProcessPhase.PROBING:
        life = idle()
        begun_s = life.due_s
        assert life.step(begun_s) is Effect.PROBE
        timeout_s = PROBE_TIMEOUT_S
    elif phase is ProcessPhase.OPENING:
        life = idle()
        life.want(0.0, wanted=True)
        assert life.step(0.0) is Effect.START
        timeout_s = 5.0
    else:
        life = running()
        life.want(0.0, wanted=False)
        assert life.step(0.0) is Effect.STOP
        timeout_s = STOP_TIMEOUT_S
    assert life.phase is phase
    late_s = begun_s + timeout_s
    assert life.due_s == late_s
    assert life.step(late_s - 0.01) is None
    assert life.step(late_s) is Effect.KILL
    assert (life.phase, life.state) == (ProcessPhase.DOWN, CameraState.FAILED)
    assert life.step(late_s + 5.0) is Effect.SPAWN
    assert life.restarts == 1


def test_frames_prevent_a_stall() -> None:
    life = running()
    life.unit(1.9)
    assert life.step(3.8) is None
    assert life.step(3.9) is Effect.STOP
    assert life.error is not None
    assert "no picture" in life.error.message
    assert (life.error.code, life.state) == (Code.CAMERA_STALLED, CameraState.FAILED)


def test_a_stalled_camera_is_reopened_first() -> None:
    life = running()
    assert life.step(2.0) is Effect.STOP
    life.closed(2.1)
    assert life.step(2.1) is None
    assert life.step(2.25) is Effect.START
    assert (life.remedy, life.why) == (Remedy.REOPEN, "the camera delivered no picture for 2 s")
    life.opened(OPENING, 2.4)
    assert (life.reopens, life.restarts, life.stalls, life.error) == (1, 0, 1, None)


def test_a_stalled_source_that_does_not_close_is_killed_with_its_process() -> None:
    life = running()
    assert life.step(2.0) is Effect.STOP
    assert life.step(2.0 + REOPEN_TIMEOUT_S) is Effect.KILL
    assert life.step(10.0) is Effect.SPAWN
    assert (life.remedy, life.reopens, life.restarts) == (Remedy.RESTART, 0, 1)


def test_a_source_that_keeps_stalling_gets_a_fresh_process() -> None:
    life, now_s = running(), 0.0
    for _ in range(TRIES):
        now_s += 2.0
        assert life.step(now_s) is Effect.STOP
        life.closed(now_s)
        now_s += 6.0
        effect = life.step(now_s)
        if effect is Effect.START:
            life.opened(OPENING, now_s)
    assert effect is Effect.KILL
    assert life.step(now_s + 6.0) is Effect.SPAWN
    assert (life.reopens, life.restarts, life.stalls) == (TRIES - 1, 1, TRIES)


def test_stalls_that_are_far_apart_never_cost_the_process() -> None:
    life, now_s = running(), 0.0
    for _ in range(3 * TRIES):
        now_s += 60.0
        life.unit(now_s - 2.0)
        assert life.step(now_s) is Effect.STOP
        life.closed(now_s)
        now_s += 1.0
        assert life.step(now_s) is Effect.START
        life.opened(OPENING, now_s)
    assert life.restarts == 0


def test_a_stall_of_a_camera_that_is_no_longer_wanted_is_only_a_close() -> None:
    life = running()
    life.want(5.0, wanted=False)
    assert life.step(5.0) is Effect.STOP
    life.closed(5.1)
    assert (life.stalls, life.state, life.step(5.2)) == (0, CameraState.CLOSED, None)


def test_a_failed_source_is_retried_with_back_off_and_sometimes_in_a_fresh_process() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    now_s, waits = 0.0, []
    for _ in range(8):
        if (effect := life.step(now_s)) is Effect.SPAWN:
            life.ready(now_s)
            effect = life.step(now_s)
        assert effect is Effect.START
        life.failed(FAULT, now_s)
        if (effect := life.step(now_s)) is not None:
            assert effect is Effect.KILL
        assert life.state is CameraState.FAILED
        assert life.error is not None
        assert (life.error.code, life.error.message) == (Code.CAMERA_UNAVAILABLE, "the sensor is hot")
        waits.append(life.due_s - now_s)
        now_s = life.due_s
    # The kill before a fresh process draws another wait.
    assert waits == pytest.approx([0.25, 0.5, 2, 4, 5, 5, 5, 5], rel=0.01)
    assert (life.failures, life.restarts, life.reopens) == (8, 2, 5)


def test_a_retry_on_request_skips_the_back_off() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    life.step(0.0)
    life.failed(FAULT, 0.0)
    life.retry_now(0.01)
    assert life.step(0.01) is Effect.START


def test_the_back_off_is_reset_after_ten_healthy_seconds() -> None:
    life = running()
    for ran_s, wait_s in [(1.0, 0.25), (1.0, 0.5), (9.0, 1.0), (10.0, 0.25), (1.0, 0.5)]:
        life.lost("it ended", ran_s)
        assert life.due_s == pytest.approx(ran_s + wait_s, rel=0.01)
        assert life.step(life.due_s) is Effect.SPAWN
        life.ready(0.0)
        assert life.step(20.0) is Effect.START
        life.opened(OPENING, 0.0)


def test_a_lost_process_is_reported_once() -> None:
    life = running()
    life.lost("it ended", 1.0)
    assert life.state is CameraState.FAILED
    error = life.error
    life.lost("reported again", 1.0)
    assert (life.error, life.restarts) == (error, 0)


def test_every_failure_of_a_running_camera_counts_as_a_stall_until_pictures_return() -> None:
    life = running()
    life.lost("the process ended", 1.0)
    codes = [life.error and life.error.code]
    assert life.step(1.5) is Effect.SPAWN
    life.ready(1.6)
    assert life.step(1.7) is Effect.START
    life.failed(FAULT, 1.8)
    codes.append(life.error and life.error.code)
    life.want(2.0, wanted=False)
    life.want(2.0, wanted=True)
    assert life.step(2.0) is Effect.START
    life.failed(FAULT, 2.1)
    codes.append(life.error and life.error.code)
    assert codes == [Code.CAMERA_STALLED, Code.CAMERA_STALLED, Code.CAMERA_UNAVAILABLE]


def test_a_missing_camera_is_probed_for_at_growing_intervals_and_found() -> None:
    life = Lifecycle(open_timeout_s=5.0, stall_s=2.0, draw=lambda: 0.999)
    assert life.step(0.0) is Effect.SPAWN
    life.ready(0.0, MISSING)
    assert (life.state, life.error) == (CameraState.FAILED, MISSING)
    now_s, waits = 0.0, []
    for _ in range(8):
        waits.append(life.due_s - now_s)
        now_s = life.due_s
        assert life.step(now_s) is Effect.PROBE
        life.probed(now_s, CameraMissing("no camera found"))
        assert life.error is MISSING, "the same failure is not reported again"
        assert life.step(now_s) is None
    assert waits == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60], rel=0.01)
    now_s = life.due_s
    assert life.step(now_s) is Effect.PROBE
    life.probed(now_s)
    assert (life.state, life.error) == (CameraState.CLOSED, None)
    assert life.due_s - now_s == pytest.approx(2, rel=0.01), "a change starts over"
    assert (life.failures, life.restarts, life.opening) == (0, 0, None)


def test_a_camera_that_is_wanted_during_a_probe_is_opened_after_it() -> None:
    life = idle()
    now_s = life.due_s
    assert life.step(now_s) is Effect.PROBE
    life.want(now_s, wanted=True)
    assert life.step(now_s) is None
    life.probed(now_s, MISSING)
    assert life.step(now_s) is Effect.START


def test_an_error_stays_after_the_last_viewer_until_a_probe_finds_the_camera() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    assert life.step(0.0) is Effect.START
    life.failed(MISSING, 0.1)
    life.want(1.0, wanted=False)
    assert life.state is CameraState.FAILED
    assert life.step(1.0) is Effect.PROBE
    life.probed(1.1)
    assert (life.state, life.error) == (CameraState.CLOSED, None)


def test_after_a_process_that_cannot_be_killed_new_ones_are_tried_at_growing_intervals() -> None:
    life = running()
    now_s, waits = 2.0, []
    assert life.step(now_s) is Effect.STOP
    for _ in range(STUCK_LIMIT):
        now_s = life.due_s
        assert life.step(now_s) is Effect.KILL
        life.stuck(4711, now_s)
        assert life.error is not None
        assert (life.error.message, life.error.code) == ("the camera does not respond", Code.CAMERA_STALLED)
        assert "4711" in life.error.detail
        life.retry_now(now_s)  # a viewer asks for the camera, which must not start one stuck process after the other
        waits.append(life.due_s - now_s)
        now_s = min(life.due_s, 1e5)
        assert life.step(now_s) is (Effect.SPAWN if len(waits) < STUCK_LIMIT else None)
    assert waits == pytest.approx([10, 20, 40, math.inf], rel=0.01)
    life.released(1e6)
    assert life.step(1e6) is Effect.SPAWN


def test_when_a_stuck_process_ends_the_next_one_is_started_at_once() -> None:
    life = running()
    life.step(2.0)
    assert life.step(2.0 + REOPEN_TIMEOUT_S) is Effect.KILL
    life.stuck(4711, 5.0)
    assert life.step(9.0) is None
    life.released(9.0)
    assert life.step(9.0) is Effect.SPAWN


EVENTS: dict[str, Callable[[Lifecycle, float], object]] = {
    "wanted": lambda life, now_s: life.want(now_s, wanted=True),
    "unwanted": lambda life, now_s: life.want(now_s, wanted=False),
    "reconfigured": Lifecycle.reconfigure,
    "retried": Lifecycle.retry_now,
    "ready": Lifecycle.ready,
    "ready without a camera": lambda life, now_s: life.ready(now_s, MISSING),
    "found": Lifecycle.probed,
    "missing": lambda life, now_s: life.probed(now_s, MISSING),
    "opened": lambda life, now_s: life.opened(OPENING, now_s),
    "unit": Lifecycle.unit,
    "failed": lambda life, now_s: life.failed(FAULT, now_s),
    "closed": Lifecycle.closed,
    "lost": lambda life, now_s: life.lost("it ended", now_s),
    "stuck": lambda life, now_s: life.stuck(4711, now_s),
    "released": Lifecycle.released,
    "time": lambda *_: None,
}
PHASES_BEFORE = {
    Effect.SPAWN: {ProcessPhase.DOWN},
    Effect.PROBE: {ProcessPhase.IDLE},
    Effect.START: {ProcessPhase.IDLE},
    Effect.STOP: {ProcessPhase.RUNNING},
    Effect.KILL: set(ProcessPhase) - {ProcessPhase.DOWN, ProcessPhase.RUNNING},
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 20), st.booleans()), max_size=60),
    st.floats(0, 1, exclude_max=True),
)
def test_the_rules_hold_for_every_sequence_of_events(events: list[tuple[str, float, bool]], draw: float) -> None:
    life = Lifecycle(open_timeout_s=5.0, stall_s=2.0, draw=lambda: draw)
    now_s, spawn_from_s, stuck = 0.0, 0.0, 0
    for event, passed_s, until_due in events:
        due_s = life.due_s if math.isfinite(life.due_s) else now_s
        now_s = max(now_s, due_s if until_due else min(now_s + passed_s, due_s))
        if (event == "stuck" and life.phase is not ProcessPhase.DOWN) or (event == "released" and stuck == 0):
            continue
        stuck += {"stuck": 1, "released": -1}.get(event, 0)
        EVENTS[event](life, now_s)
        if event in {"stuck", "released"} and life.phase is ProcessPhase.DOWN:
            spawn_from_s = min(now_s + 5, life.due_s) if event == "stuck" else now_s
        for _ in range(5):
            before, wanted = life.phase, life.wanted
            if (effect := life.step(now_s)) is None:
                break
            assert before in PHASES_BEFORE[effect]
            assert effect is not Effect.START or wanted
            assert effect is not Effect.PROBE or not wanted
            assert effect is not Effect.SPAWN or (now_s >= spawn_from_s and stuck < STUCK_LIMIT)
        assert effect is None, "the rules do not come to rest"
        assert life.due_s > now_s, "the owner would spin"
        assert (life.opening is not None) == (life.phase is ProcessPhase.RUNNING)
        assert (life.state is CameraState.FAILED) <= (life.error is not None)
