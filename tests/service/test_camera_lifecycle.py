"""When the camera process is started, opened, closed and killed."""

from __future__ import annotations

import pytest

from edge.camera.lifecycle import SPAWN_TIMEOUT_S, STOP_TIMEOUT_S, Effect, Lifecycle, Phase
from edge.camera.port import CameraState
from edge.core.access_unit import StreamFormat

FORMAT = StreamFormat(1280, 720, 30.0, "42c01f", "libx264")


def idle(now_s: float = 0.0) -> Lifecycle:
    life = Lifecycle(open_timeout_s=5.0, stall_s=2.0, draw=lambda: 0.999)
    assert life.step(now_s) is Effect.SPAWN
    life.ready(now_s)
    return life


def running(now_s: float = 0.0) -> Lifecycle:
    life = idle(now_s)
    life.want(now_s, wanted=True)
    assert life.step(now_s) is Effect.START
    life.opened(FORMAT, now_s)
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
    assert life.format is None
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


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.OPENING, Phase.RUNNING, Phase.CLOSING])
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
    elif phase is Phase.CLOSING:
        life.want(0.0, wanted=False)
        assert life.step(0.0) is Effect.STOP
        late_s = STOP_TIMEOUT_S
    else:
        late_s = 2.0
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
    assert life.step(3.9) is Effect.KILL
    assert life.error is not None
    assert "no picture" in life.error.message
    assert life.state is CameraState.FAILED


def test_a_failed_source_is_tried_again_with_back_off_in_the_same_process() -> None:
    life = idle()
    life.want(0.0, wanted=True)
    now_s, waits = 0.0, []
    for _ in range(8):
        assert life.step(now_s) is Effect.START
        life.failed("no camera", now_s)
        assert life.step(now_s) is None
        assert life.state is CameraState.FAILED
        assert life.due_s is not None
        waits.append(life.due_s - now_s)
        now_s = life.due_s
    assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5, 5], rel=0.01)
    assert (life.restarts, life.failures) == (0, 8)


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
        life.opened(FORMAT, 0.0)


def test_an_error_is_gone_when_it_runs_or_is_not_wanted() -> None:
    life = running()
    life.lost("it ended", 1.0)
    assert life.state is CameraState.FAILED
    life.want(1.0, wanted=False)
    assert (life.error, life.state) == (None, CameraState.CLOSED)
    life.lost("twice is once", 1.0)
    assert life.restarts == 0
