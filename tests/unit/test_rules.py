"""The small rules of edge.core: time is an argument, and nothing blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.codes import Code, EndReason
from edge.contract.topics import Topics
from edge.core.backoff import Backoff
from edge.core.candidate import read_candidate
from edge.core.demand import CameraDemand
from edge.core.h264_profile import Profile, read_profile_level
from edge.core.keyframes import KeyframeRequests
from edge.core.lane import Lane
from edge.core.principal import Interface, Principal
from edge.core.session import Deadlines, Phase, SessionMachine
from edge.errors import Rejected
from edge.mqtt.limits import oversize, publish_budget


def test_backoff_doubles_up_to_its_cap_with_jitter_below() -> None:
    backoff = Backoff(first_s=0.5, cap_s=10)
    assert [backoff.next_s(1.0) for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert backoff.next_s(0.0) == 0
    backoff.reset()
    assert backoff.next_s(1.0) == 0.5


def test_backoff_is_never_shorter_than_its_minimum() -> None:
    backoff = Backoff(first_s=2, cap_s=4, least_s=1)
    assert [backoff.next_s(draw) for draw in (0.0, 0.5, 1.0)] == [1, 2.5, 4]
    assert Backoff(first_s=2, cap_s=0.5, least_s=1).next_s(1.0) == 1


@given(per_s=st.integers(1, 500), gaps=st.lists(st.floats(0, 0.3), max_size=200))
def test_publishes_per_second_never_exceed_the_rate(per_s: int, gaps: list[float]) -> None:
    budget = publish_budget(per_s)
    now_s, sent = 0.0, []
    for gap in gaps:
        now_s += gap
        if (wait_s := budget.reserve(now_s, 5)) is not None:
            sent.append(now_s + wait_s)
    assert sent == sorted(sent)
    for begin_s in sent:
        assert sum(begin_s <= at_s < begin_s + 0.999 for at_s in sent) <= per_s


def test_oversize_topics_and_payloads_are_detected() -> None:
    assert oversize("a/" * 7 + "b", b"x" * 128 * 1024) is None
    assert oversize("ü" * 128, b"") is None
    for topic, payload in (("a/" * 8 + "b", b""), ("ü" * 129, b""), ("a", b"x" * (128 * 1024 + 1))):
        assert oversize(topic, payload)


def test_camera_stays_open_for_the_idle_time_after_the_last_viewer() -> None:
    demand = CameraDemand(idle_stop_s=30)
    assert not demand.wanted(0)
    demand.set_sessions(1, now_s=1)
    assert demand.wanted(1000)
    assert demand.next_change_s(1000) is None
    demand.set_sessions(0, now_s=1000)
    assert demand.next_change_s(1000) == 1030
    assert demand.wanted(1029)
    assert not demand.wanted(1030)
    assert demand.next_change_s(1030) is None


def test_camera_stays_closed_after_stop_and_start_without_a_viewer() -> None:
    demand = CameraDemand(idle_stop_s=30)
    demand.set_sessions(1, now_s=0)
    demand.set_running(False)
    demand.set_sessions(0, now_s=1)
    assert not demand.wanted(2)
    demand.set_running(True)
    assert not demand.wanted(3)


_DEMAND_EVENTS = st.one_of(
    st.tuples(st.just("running"), st.booleans()),
    st.tuples(st.just("sessions"), st.integers(0, 2)),
    st.tuples(st.just("use"), st.just(True)),
    st.tuples(st.just("unuse"), st.just(True)),
    st.tuples(st.just("idle_stop_s"), st.sampled_from([0.0, 1.0, 30.0])),
)


@given(events=st.lists(st.tuples(st.floats(0, 40), _DEMAND_EVENTS), max_size=20))
def test_camera_demand_changes_only_at_the_announced_time_in_the_future(
    events: list[tuple[float, tuple[str, Any]]],
) -> None:
    """The daemon sleeps until `next_change_s`: a time in the past would make it spin."""
    demand, now_s = CameraDemand(idle_stop_s=30), 0.0
    running, sessions, uses = True, 0, 0
    for gap_s, (kind, value) in events:
        due_s, before = demand.next_change_s(now_s), demand.wanted(now_s)
        assert due_s is None or (due_s > now_s and before and not demand.wanted(due_s))
        now_s += gap_s
        if due_s is None or now_s < due_s:
            assert demand.wanted(now_s) is before
        if kind == "running":
            running = value
            demand.set_running(value)
        elif kind == "sessions":
            sessions = value
            demand.set_sessions(value, now_s)
        elif kind == "use" or (kind == "unuse" and uses):
            change = 1 if kind == "use" else -1
            uses += change
            demand.add_uses(change)
        elif kind == "idle_stop_s":
            demand.idle_stop_s = value
        wanted = demand.wanted(now_s)
        assert [demand.wanted(now_s), demand.next_change_s(now_s)] == [wanted, demand.next_change_s(now_s)]
        assert wanted or not running or not (sessions or uses)
        assert not wanted or running


def test_a_session_without_a_token_belongs_to_its_client() -> None:
    opener = Principal("anna", "bff-1", Interface.MQTT)
    assert Principal("bff-1", "bff-1", Interface.MQTT).owns(opener)
    assert not Principal("anna", "bff-2", Interface.MQTT).owns(opener)
    assert not Principal("anna", "bff-1", Interface.LOCAL).owns(opener)


_PRINCIPALS = st.builds(
    Principal,
    st.sampled_from(["anna", "boris"]),
    st.sampled_from(["bff-1", "bff-2"]),
    st.sampled_from(Interface),
    token=st.sampled_from([None, "t-1", "t-2"]),
    expired=st.booleans(),
)


@given(opener=_PRINCIPALS, caller=_PRINCIPALS)
def test_a_session_with_a_token_belongs_to_its_subject(opener: Principal, caller: Principal) -> None:
    if caller.owns(opener):
        assert caller.interface is opener.interface
    if caller.owns(opener) and opener.token is not None:
        assert caller.subject == opener.subject
        assert caller.token is not None
        assert caller.token == opener.token or not caller.expired
    proven = opener.token is not None and caller.token is not None and caller.subject == opener.subject
    if proven and caller.interface is opener.interface and not caller.expired:
        assert caller.owns(opener)


def test_each_phase_of_a_session_has_its_deadline() -> None:
    machine = SessionMachine(Deadlines(answering_s=8, connecting_s=15, closing_s=3))
    assert machine.deadline_s() is None
    machine.advance(Phase.ANSWERING, 0)
    assert (machine.overdue(7.9), machine.overdue(8)) == (None, EndReason.ANSWER_TIMEOUT)
    machine.advance(Phase.CONNECTING, 5)
    assert (machine.overdue(19), machine.overdue(20)) == (None, EndReason.CONNECT_TIMEOUT)
    machine.advance(Phase.LIVE, 6)
    assert machine.overdue(1e9) is None
    assert machine.finish(EndReason.STOPPED, 7)
    assert machine.deadline_s() == 10
    assert not machine.finish(EndReason.CONNECTION_LOST, 8)
    assert machine.end is EndReason.STOPPED
    assert machine.advance(Phase.CLOSED, 9)


@given(st.lists(st.sampled_from(list(Phase)), max_size=20))
def test_session_phases_only_advance(phases: list[Phase]) -> None:
    machine = SessionMachine(Deadlines())
    order = list(Phase)
    for now_s, phase in enumerate(phases):
        before = machine.phase
        if machine.advance(phase, now_s):
            assert order.index(machine.phase) > order.index(before)
        else:
            assert machine.phase is before


@given(st.lists(st.tuples(st.sampled_from(["key", "delta", "take"]), st.none()), max_size=60), st.integers(1, 6))
def test_a_lane_is_bounded_and_never_shows_a_picture_that_cannot_be_decoded(
    steps: list[tuple[str, None]], limit: int
) -> None:
    lane: Lane[tuple[int, bool]] = Lane(limit)
    taken: list[tuple[int, bool]] = []
    pushed = 0
    for step, _ in steps:
        if step == "take":
            if (unit := lane.take()) is not None:
                taken.append(unit)
        else:
            lane.push((pushed, step == "key"), keyframe=step == "key")
            pushed += 1
        assert len(lane) <= limit
    while (unit := lane.take()) is not None:
        taken.append(unit)
    last = None
    for number, keyframe in taken:
        assert keyframe or number == (last if last is not None else -2) + 1, "a gap ends only at a keyframe"
        last = number


def test_keyframe_requests_are_coalesced_and_none_is_lost() -> None:
    requests = KeyframeRequests()
    assert requests.request(0)
    assert not requests.request(0.1)
    assert not requests.due(0.4)
    assert requests.due(0.5)
    assert not requests.due(0.6)
    assert not requests.request(0.7)
    requests.delivered()
    assert not requests.due(1.5)


@pytest.mark.parametrize(
    ("text", "profile", "level"),
    [
        ("42e01f", Profile.CONSTRAINED_BASELINE, 31),
        ("42c028", Profile.CONSTRAINED_BASELINE, 40),
        ("4d801f", Profile.CONSTRAINED_BASELINE, 31),
        ("58c01f", Profile.CONSTRAINED_BASELINE, 31),
        ("42001F", Profile.BASELINE, 31),
        ("4d0028", Profile.MAIN, 40),
        ("640c1f", Profile.CONSTRAINED_HIGH, 31),
        ("640028", Profile.HIGH, 40),
    ],
)
def test_profiles_are_read_as_in_the_table_of_rfc_6184(text: str, profile: Profile, level: int) -> None:
    read = read_profile_level(text)
    assert read is not None
    assert (read.profile, read.level_idc) == (profile, level)


@pytest.mark.parametrize("text", ["", "42e0", "42e01f00", "zzzzzz", "f4001f"])
def test_unknown_profiles_are_none(text: str) -> None:
    assert read_profile_level(text) is None


def test_level_1b_lies_between_1_and_1_1() -> None:
    one_b, one_one, one = (read_profile_level(text) for text in ("42f00b", "42e00b", "42e00a"))
    assert one_b is not None
    assert one_one is not None
    assert one is not None
    assert one_one.carries(one_b)
    assert one_b.carries(one)
    assert not one_b.carries(one_one)


@pytest.mark.parametrize(
    "line",
    [
        "candidate:1 1 udp 2122260223 192.0.2.9 50000 typ host",
        "a=candidate:1 1 UDP 2122260223 2001:db8::7 50000 typ srflx raddr :: rport 9 generation 0",
        "1 1 udp 1 192.0.2.9 50000 typ relay",
    ],
)
def test_usable_candidates_are_read(line: str) -> None:
    candidate = read_candidate(line)
    assert candidate is not None
    assert candidate.port == 50000


@pytest.mark.parametrize(
    "line",
    [
        "candidate:1 1 tcp 1518280447 192.0.2.9 9 typ host tcptype active",
        "candidate:1 2 udp 2122260223 192.0.2.9 50000 typ host",
        "candidate:1 1 udp 2122260223 8b3cf4a1.local 50000 typ host",
        *(
            f"candidate:1 1 udp 2122260223 {address} 50000 typ {kind}"
            for address in ("224.0.0.251", "239.255.255.250", "255.255.255.255", "0.0.0.0", "0.1.2.3")
            for kind in ("host", "relay")
        ),
        *(
            f"candidate:1 1 udp 2122260223 {address} 50000 typ srflx"
            for address in ("ff02::fb", "FF0E::1", "::", "::ffff:127.0.0.1", "::ffff:224.0.0.1")
        ),
    ],
)
def test_unusable_candidates_are_none(line: str) -> None:
    assert read_candidate(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "candidate",
        "candidate:1 1 udp 1 camera.example 50000 typ host",
        "candidate:1 1 udp 1 192.0.2.9 70000 typ host",
        "candidate:1 1 udp 9999999999 192.0.2.9 7 typ host",
        "candidate:1 1 udp 1 192.0.2.9 7 typ wormhole",
    ],
)
def test_malformed_candidates(line: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_candidate(line)
    assert caught.value.code is Code.BAD_MESSAGE


@given(st.text(max_size=200))
def test_any_text_is_read_as_a_candidate_or_rejected(line: str) -> None:
    try:
        read_candidate(line)
    except Rejected as exc:
        assert exc.code is Code.BAD_MESSAGE


@pytest.mark.parametrize(
    ("topic", "client"),
    [
        ("edge/v1/cam-1/reply/bff-7", "bff-7"),
        ("edge/v1/cam-1/reply/", None),
        ("edge/v1/cam-1/reply/a/b", None),
        ("edge/v1/cam-1/reply/+", None),
        ("edge/v1/cam-1/reply/#", None),
        ("edge/v1/cam-2/reply/bff-7", None),
        ("edge/v1/cam-1/command", None),
        ("edge/v1/cam-1/reply/" + "x" * 65, None),
    ],
)
def test_reply_topics_name_their_client(topic: str, client: str | None) -> None:
    assert Topics("cam-1").reply_client(topic) == client


def test_every_code_has_an_http_status_and_every_end_a_known_code() -> None:
    assert all(400 <= code.http_status < 600 for code in Code)
    assert {reason for reason in EndReason if reason.code is None} == {
        EndReason.VIEWER_CLOSED,
        EndReason.CLOSED_BY_BACKEND,
        EndReason.REFUSED,
    }
