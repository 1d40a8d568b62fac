"""When the camera process is started, opened, closed and killed."""

from __future__ import annotations

import pytest

from edge.camera.lifecycle import (
    REOPEN_TIMEOUT_S,
    SPAWN_TIMEOUT_S,
    STOP_TIMEOUT_S,
    TRIES,
    Effect,
    Lifecycle,
    Phase,
    Remedy,
)
from edge.camera.port import CameraState, Opening
from edge.contract.codes import Code
from edge.core.access_unit import StreamFormat

OPENING = Opening(StreamFormat(1280, 720, 30.0, "42c01f", "libx264"))


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


def test_the_process_is_kept_warm_and_opened_only_when_wanted() -> None:
    life = idle()
    assert life.step(100.0) is None
    assert life.due_s is None
    states = [life.state]
    life.want(100.0, wanted=True)
    states.append(life.state)
    assert states == [CameraState.CLOSED, CameraState.OPENING]
    assert life.step(100.0) is Effect.START


def test_no_longer_wanted_it_is_closed_and_the_process_stays() -> None:
    life = running()
    life.want(1.0, wanted=False)
    assert life.step(1.0) is Effect.STOP
    assert not life.unit(1.1)
    assert life.opening is None
    life.closed(1.2)
    assert (life.phase, life.state, life.step(500.0)) == (Phase.IDLE, CameraState.CLOSED, None)


def test_wanted_again_while_it_closes_it_opens_again_after() -> None:
    life = running()
    life.want(1.0, wanted=False)
    assert life.step(1.0) is Effect.STOP
    life.want(1.1, wanted=True)
    assert life.step(1.1) is None
    life.closed(1.2)
    assert life.step(1.2) is Effect.START


def test_to_be_opened_in_another_way_it_is_closed_and_opened_without_counting_as_a_failure() -> None:
    life = running()
    life.renew(1.0)
    assert life.step(1.0) is Effect.STOP
    assert life.state is CameraState.OPENING
    life.closed(1.1)
    assert life.step(1.1) is Effect.START
    life.opened(OPENING, 1.2)
    assert (life.step(1.2), life.reopens, life.failures, life.error) == (None, 0, 0, None)


def test_told_so_while_it_opens_it_is_opened_once_more() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    assert life.step(0.0) is Effect.START
    life.renew(0.1)
    assert life.step(0.1) is None
    life.opened(OPENING, 0.2)
    assert life.step(0.2) is Effect.STOP
    life.closed(0.3)
    assert life.step(0.3) is Effect.START
    life.opened(OPENING, 0.4)
    assert life.step(0.4) is None


def test_told_so_while_nobody_wants_it_nothing_happens_before_it_is_wanted() -> None:
    life = idle()
    life.renew(1.0)
    assert life.step(1.0) is None
    life.want(2.0, wanted=True)
    assert life.step(2.0) is Effect.START


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.OPENING, Phase.CLOSING])
def test_whatever_waits_has_a_deadline(phase: Phase) -> None:
    life = running()
    if phase is Phase.STARTING:
        life = Lifecycle(5.0, 2.0, lambda: 0.5)
        assert life.step(0.0) is Effect.SPAWN
        late_s = SPAWN_TIMEOUT_S
    elif phase is Phase.OPENING:
        life = idle()
        life.want(0.0, wanted=True)
        assert life.step(0.0) is Effect.START
        late_s = 5.0
    else:
        life.want(0.0, wanted=False)
        assert life.step(0.0) is Effect.STOP
        late_s = STOP_TIMEOUT_S
    assert life.phase is phase
    assert life.due_s == late_s
    assert life.step(late_s - 0.01) is None
    assert life.step(late_s) is Effect.KILL
    assert life.phase is Phase.DOWN
    assert life.step(late_s + 5.0) is Effect.SPAWN
    assert life.restarts == 1


def test_frames_hold_the_watchdog_off() -> None:
    life = running()
    assert life.unit(1.9)
    assert life.step(3.8) is None
    assert life.step(3.9) is Effect.STOP
    assert life.error is not None
    assert "no picture" in life.error.message
    assert (life.error.code, life.state) == (Code.CAMERA_STALLED, CameraState.FAILED)


def test_a_stall_is_tried_with_a_reopening_first() -> None:
    life = running()
    assert life.step(2.0) is Effect.STOP
    assert not life.unit(2.1), "what is left of before is not shown"
    life.closed(2.1)
    assert life.step(2.1) is None
    assert life.step(2.25) is Effect.START
    assert (life.remedy, life.why) == (Remedy.REOPEN, "the camera delivered no picture for 2 s")
    life.opened(OPENING, 2.4)
    assert (life.reopens, life.restarts, life.stalls, life.error) == (1, 0, 1, None)


def test_a_stalled_source_that_does_not_let_go_is_killed_with_its_process() -> None:
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


def test_a_stall_when_nobody_wants_the_camera_any_more_is_only_a_close() -> None:
    life = running()
    life.want(5.0, wanted=False)
    assert life.step(5.0) is Effect.STOP
    life.closed(5.1)
    assert (life.stalls, life.state, life.step(50.0)) == (0, CameraState.CLOSED, None)


def test_a_failed_source_is_tried_again_with_back_off_and_now_and_then_in_a_fresh_process() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    now_s, waits = 0.0, []
    for _ in range(8):
        if (effect := life.step(now_s)) is Effect.SPAWN:
            life.ready(now_s)
            effect = life.step(now_s)
        assert effect is Effect.START
        life.failed("no camera", now_s)
        if (effect := life.step(now_s)) is not None:
            assert effect is Effect.KILL
        assert life.state is CameraState.FAILED
        assert life.error is not None
        assert (life.error.code, life.error.message) == (Code.CAMERA_UNAVAILABLE, "no camera")
        assert life.due_s is not None
        waits.append(life.due_s - now_s)
        now_s = life.due_s
    # The kill of the fresh process's turn is a step of its own.
    assert waits == pytest.approx([0.25, 0.5, 2, 4, 5, 5, 5, 5], rel=0.01)
    assert (life.failures, life.restarts, life.reopens) == (8, 2, 5)


def test_who_hurries_does_not_wait_for_the_back_off() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    life.step(0.0)
    life.failed("no camera", 0.0)
    life.hurry(0.01)
    assert life.step(0.01) is Effect.START


def test_back_off_starts_anew_after_ten_good_seconds() -> None:
    life = running()
    for ran_s, wait_s in [(1.0, 0.25), (1.0, 0.5), (9.0, 1.0), (10.0, 0.25), (1.0, 0.5)]:
        life.lost("it ended", ran_s)
        due_s = life.due_s
        assert due_s == pytest.approx(ran_s + wait_s, rel=0.01)
        assert due_s is not None
        assert life.step(due_s) is Effect.SPAWN
        life.ready(0.0)
        assert life.step(20.0) is Effect.START
        life.opened(OPENING, 0.0)


def test_an_error_is_gone_when_it_runs_or_is_not_wanted() -> None:
    life = running()
    life.lost("it ended", 1.0)
    assert life.state is CameraState.FAILED
    life.want(1.0, wanted=False)
    assert (life.error, life.state) == (None, CameraState.CLOSED)
    life.lost("twice is once", 1.0)
    assert life.restarts == 0


def test_whatever_ends_the_pictures_is_told_as_a_stall_until_they_come_again() -> None:
    life = running()
    life.lost("the process ended", 1.0)
    codes = [life.error and life.error.code]
    assert life.step(1.5) is Effect.SPAWN
    life.ready(1.6)
    assert life.step(1.7) is Effect.START
    life.failed("no camera", 1.8)
    codes.append(life.error and life.error.code)
    life.want(2.0, wanted=False)
    life.want(2.0, wanted=True)
    assert life.step(2.0) is Effect.START
    life.failed("no camera", 2.1)
    codes.append(life.error and life.error.code)
    assert codes == [Code.CAMERA_STALLED, Code.CAMERA_STALLED, Code.CAMERA_UNAVAILABLE]
