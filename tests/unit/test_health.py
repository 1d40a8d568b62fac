"""The health verdict over all its inputs, second by second."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge.core.health import Health

LIMIT_S = 5
# Of each second: the camera is running, it delivers, sessions and commands are on time. Long runs of each are likely.
SECOND = st.tuples(
    st.booleans(), st.booleans(), st.sampled_from([True] * 9 + [False]), st.sampled_from([True] * 9 + [False])
)
TIMELINE = st.lists(st.tuples(SECOND, st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda runs: [second for second, length in runs for _ in range(length)]
)


@given(TIMELINE)
def test_only_overdue_work_or_a_silent_running_camera_is_a_fault(timeline: list[tuple[bool, bool, bool, bool]]) -> None:
    health = Health(LIMIT_S)
    for now_s, (running, delivers, sessions_on_time, commands_on_time) in enumerate(timeline):
        health.camera_changed(now_s, running=running)
        if delivers:
            health.delivered(now_s)
        fault = health.fault(now_s, sessions_on_time=sessions_on_time, commands_on_time=commands_on_time, counters={})
        # The camera ran for longer than the limit, and delivered nothing within it.
        recent = timeline[max(0, now_s - LIMIT_S - 1) : now_s + 1]
        silent = (
            len(recent) == LIMIT_S + 2 and all(each[0] for each in recent) and not any(each[1] for each in recent[1:])
        )
        assert (fault is not None) == (not sessions_on_time or not commands_on_time or silent)
        if fault is not None:
            named = "session" if not sessions_on_time else "command" if not commands_on_time else "camera"
            assert named in fault


def test_a_restarted_camera_gets_the_whole_limit_again() -> None:
    health = Health(LIMIT_S)

    def fault(now_s: float) -> str | None:
        return health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters={})

    health.camera_changed(0, running=True)
    assert fault(LIMIT_S) is None
    assert fault(LIMIT_S + 0.1)
    health.camera_changed(6, running=False)
    assert fault(100) is None
    health.camera_changed(100, running=True)
    assert fault(100 + LIMIT_S) is None
    assert fault(101 + LIMIT_S)


OUTCOMES = {"bug": "command_bugs", "success": "commands_executed"}
REFUSALS = {code: f"refused_{code}" for code in ("bad_message", "unauthorized", "rate_limited", "forbidden")}
OTHERS = {"before proof": "intake_bugs", "nothing": "commands", **REFUSALS}


@given(st.lists(st.tuples(st.sampled_from([1, 1, 1, 14]), st.sampled_from([*OUTCOMES, *OTHERS, "bug"])), max_size=40))
def test_an_entry_point_without_success_is_a_fault_whatever_is_refused(steps: list[tuple[int, str]]) -> None:
    health = Health(LIMIT_S)
    counters: Counter[str] = Counter()
    row: list[int] = []
    now_s = 0
    for step_s, happens in steps:
        now_s += step_s
        counters[{**OUTCOMES, **OTHERS}[happens]] += 1
        row = [*row, now_s] if happens == "bug" else [] if happens in OUTCOMES else row
        row = [bug_s for bug_s in row if now_s - bug_s <= 60]
        fault = health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters=counters)
        assert (fault is not None) == (len(row) >= 5 and now_s - row[0] >= 10)


def test_rare_bugs_are_no_fault_however_many() -> None:
    health = Health(LIMIT_S)
    for number in range(100):
        counters = {"command_bugs": number, "request_bugs": number}
        now_s = number * 900.0
        assert health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters=counters) is None
