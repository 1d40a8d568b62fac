"""The rules that share what is scarce: rates, places, and turns."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.codes import Code
from edge.core.admission import Place, admit, admit_use
from edge.core.budget import Budget, CommandRates, FairBudget, Unproven, Work
from edge.core.fair_queue import FairQueue
from edge.core.once import OnceWindow
from edge.errors import Rejected


def test_budget_reserves_a_later_time_within_the_limit_or_returns_none() -> None:
    budget = Budget(per_s=2, burst=2)
    assert [budget.reserve(0, 1) for _ in range(5)] == [0, 0, 0.5, 1, None]
    assert budget.reserve(1, 0) is None
    assert budget.reserve(1.5, 0) == 0


def test_budget_allows_a_burst_and_then_its_rate() -> None:
    budget = Budget(per_s=2, burst=3)
    assert [budget.take(0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(0.5)
    assert not budget.take(0.6)
    assert [budget.take(100) for _ in range(4)] == [True, True, True, False]


def admitted(viewer: str | None, *places: Place, max_viewers: int = 5, max_per_viewer: int = 2) -> str | Code | None:
    try:
        return admit(viewer, places, max_viewers=max_viewers, max_per_viewer=max_per_viewer)
    except Rejected as exc:
        assert exc.retry_after_s
        return exc.code


def test_admission_rejects_above_the_viewer_limit_and_while_stopped() -> None:
    places = [Place(f"s{number}", None, live=True) for number in range(5)]
    assert admitted(None, *places[:4]) is None
    assert admitted(None, *places) is Code.BUSY
    assert admitted("anna", *places) is Code.BUSY
    admit_use(running=True)
    with pytest.raises(Rejected) as stopped:
        admit_use(running=False)
    assert stopped.value.code is Code.STOPPED


def test_a_viewer_replaces_its_oldest_attempt_beyond_its_places() -> None:
    first, second = Place("s1", "anna", live=False), Place("s2", "anna", live=False)
    live, other = Place("s3", "anna", live=True), Place("s4", "anna", live=True)
    assert admitted("anna", first) is None
    assert admitted("anna", first, second) == "s1"
    assert admitted("anna", live, second) == "s2"
    assert admitted("anna", live, other) is Code.BUSY
    assert admitted("boris", live, other) is None
    assert admitted(None, *(Place(f"s{number}", None, live=False) for number in range(4))) is None, "nobody is proved"


def test_an_attempt_of_a_viewer_with_another_place_gives_way_when_all_are_taken() -> None:
    boris, anna, again = (
        Place("b", "boris", live=False),
        Place("a1", "anna", live=True),
        Place("a2", "anna", live=False),
    )
    assert admitted("carla", boris, anna, again, max_viewers=3) == "a2"
    assert admitted("boris", boris, anna, again, max_viewers=3) is Code.BUSY, "it has a place"
    assert admitted(None, boris, anna, again, max_viewers=3) is Code.BUSY
    assert admitted("carla", boris, anna, max_viewers=2) is Code.BUSY, "each has one"


_PLACES = st.lists(
    st.tuples(st.sampled_from([None, "anna", "boris", "carla"]), st.sampled_from(["attempt", "live", "closing"])),
    max_size=12,
)


@given(viewer=st.sampled_from([None, "anna", "boris"]), found=_PLACES, most=st.integers(1, 6), each=st.integers(1, 4))
def test_admission_keeps_its_limits_and_ends_no_live_session(
    viewer: str | None, found: list[tuple[str | None, str]], most: int, each: int
) -> None:
    places = [
        Place(str(number), name, live=phase == "live", closing=phase == "closing")
        for number, (name, phase) in enumerate(found)
    ]
    leaving = admitted(viewer, *places, max_viewers=most, max_per_viewer=each)
    taken = [place for place in places if not place.closing]
    own = [place for place in taken if viewer is not None and place.viewer == viewer]
    if leaving is Code.BUSY:
        assert len(taken) >= most or len(own) >= each or len(places) >= 2 * most or len(places) - len(taken) > 0
        return
    kept = [place for place in taken if place.session != leaving]
    assert len(kept) < most
    assert len(places) < 2 * most
    assert viewer is None or sum(place.viewer == viewer for place in kept) < each
    if leaving is not None:
        (left,) = (place for place in taken if place.session == leaving)
        assert not left.live
        assert left.viewer is not None
        assert left.viewer == viewer or (not own and len([p for p in taken if p.viewer == left.viewer]) > 1)


@given(found=st.lists(st.sampled_from(["anna", "boris"]), max_size=40), newcomer=st.booleans())
def test_two_viewers_that_never_connect_leave_a_place_for_a_third(found: list[str], newcomer: bool) -> None:
    places: list[Place] = []
    for number, viewer in enumerate(found):
        leaving = admitted(viewer, *places)
        if leaving is not Code.BUSY:
            places = [place for place in places if place.session != leaving]
            places.append(Place(str(number), viewer, live=False))
    assert len(places) <= 4
    if newcomer:
        assert admitted("carla", *places) is None


def test_a_sender_with_many_items_does_not_delay_the_others() -> None:
    queue: FairQueue[str] = FairQueue(limit=6)
    assert [queue.put("loud", f"l{number}") for number in range(6)] == [False] * 6
    assert queue.put("quiet", "q0"), "one of the loud sender's is dropped"
    assert queue.put("loud", "l6")
    assert [queue.take() for _ in range(7)] == ["l2", "q0", "l3", "l4", "l5", "l6", None]


@given(st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=80), st.integers(1, 8))
def test_a_fair_queue_keeps_the_order_of_each_sender_and_its_turn(steps: list[str | None], limit: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(limit)
    waiting: list[tuple[str, int]] = []
    taken: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step is None:
            item = queue.take()
            assert (item is None) == (not waiting)
            if item is not None:
                assert item == next(one for one in waiting if one[0] == item[0]), "the oldest of its sender"
                waiting.remove(item)
                assert item[1] > taken.get(item[0], -1)
                taken[item[0]] = item[1]
        else:
            counts = {name: sum(one[0] == name for one in waiting) for name in "abcd"}
            if queue.put(step, (step, number)):
                assert len(waiting) == limit
                left = [queue._queues[name] for name in queue._queues]
                (gone,) = set(waiting) - {one for items in left for one in items}
                assert counts[gone[0]] == max(counts.values())
                waiting.remove(gone)
            waiting.append((step, number))
        assert len(queue) == len(waiting) <= limit


def test_once_window_keeps_entries_until_they_expire_and_rejects_when_full() -> None:
    window: OnceWindow[str] = OnceWindow(limit=2)
    window.put(("a", "1"), "a", "first", 0, 300)
    assert window.seen(("a", "1"), 299) == "first"
    assert window.seen(("b", "1"), 299) is None
    window.put(("b", "1"), "b", "second", 10, 200)
    with pytest.raises(Rejected) as full:
        window.put(("c", "1"), "c", "third", 199, 500)
    assert (full.value.code, full.value.retry_after_s) == (Code.RATE_LIMITED, 1)
    assert window.seen(("b", "1"), 200) is None
    window.put(("c", "1"), "c", "third", 200, 500)
    assert len(window) == 2
    window.drop(("a", "1"))
    assert window.seen(("a", "1"), 201) is None
    assert len(window) == 1


def test_one_sender_cannot_fill_the_once_window() -> None:
    window: OnceWindow[int] = OnceWindow(limit=10, each=4)
    for number in range(4):
        window.put(("flood", str(number)), "flood", number, 0, 100)
    with pytest.raises(Rejected) as full:
        window.put(("flood", "4"), "flood", 4, 0, 100)
    assert full.value.code is Code.RATE_LIMITED
    window.put(("other", "1"), "other", 1, 0, 100)
    window.drop(("flood", "0"))
    window.put(("flood", "4"), "flood", 4, 0, 50)
    with pytest.raises(Rejected):
        window.put(("flood", "5"), "flood", 5, 49, 100)
    window.put(("flood", "5"), "flood", 5, 50, 100)


def put(window: OnceWindow[int], sender: str, count: int, *, reserved: bool = False) -> int:
    """Put entries of a sender; return how many were accepted."""
    accepted = 0
    for number in range(count):
        with contextlib.suppress(Rejected):
            window.put((sender, f"{reserved}{number}"), sender, number, 0, 100, reserved=reserved)
            accepted += 1
    return accepted


@pytest.mark.parametrize("window", [OnceWindow[int](), OnceWindow[int](reserve=256, yield_s=30)])
def test_a_few_busy_senders_leave_places_for_the_others(window: OnceWindow[int]) -> None:
    for sender in "abcd":
        put(window, sender, 1100)
    assert len(window) == 3072 + 32
    assert [put(window, f"viewer-{number}", 40) for number in range(31)] == [32] * 31
    assert len(window) == 4096
    assert put(window, "late", 1) == 0


def test_busy_senders_keep_their_reserved_places() -> None:
    window: OnceWindow[int] = OnceWindow(reserve=256)
    for sender in "abcd":
        put(window, sender, 1100)
    assert put(window, "a", 100, reserved=True) == 100


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 200)), max_size=30), st.integers(1, 32))
def test_a_sender_with_few_entries_has_a_place_whatever_busy_senders_put(
    puts: list[tuple[str, int]], count: int
) -> None:
    """There are as many places for those with few as the senders can have."""
    window: OnceWindow[int] = OnceWindow(limit=1024, each=256)
    for number, (sender, many) in enumerate(puts):
        for one in range(many):
            with contextlib.suppress(Rejected):
                window.put((sender, f"{number}-{one}"), sender, one, 0, 100)
    assert put(window, "quiet", count) == count
    assert len(window) <= 1024


def test_reserved_places_remain_when_the_window_is_full() -> None:
    window: OnceWindow[int] = OnceWindow(limit=6, each=3, reserve=2)
    for number in range(6):
        window.put((str(number),), f"viewer-{number // 3}", number, 0, 100)
    for sender in ("viewer-0", "other"):
        with pytest.raises(Rejected):
            window.put(("more",), sender, 0, 1, 100)
    for number in range(2):
        window.put((f"stop-{number}",), "viewer-0", 0, 1, 100, reserved=True)
    with pytest.raises(Rejected):
        window.put(("stop-3",), "other", 0, 1, 100, reserved=True)
    assert len(window) == 8


def test_the_oldest_unproven_entry_gives_way_when_it_is_old_enough() -> None:
    window: OnceWindow[int] = OnceWindow(limit=4, each=2, yield_s=30)
    for number in range(4):
        window.put((str(number),), str(number % 2), number, float(number), 300)
    with pytest.raises(Rejected) as full:
        window.put(("4",), "2", 4, 29, 300)
    assert full.value.retry_after_s == 30
    window.put(("4",), "2", 4, 30, 300)
    assert window.seen(("0",), 30) is None
    with pytest.raises(Rejected):
        window.put(("5",), "1", 5, 30, 300)
    window.put(("5",), "1", 5, 31, 300)
    assert [number for number in range(6) if window.seen((str(number),), 31) is not None] == [2, 3, 4, 5]


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3), st.integers(1, 300), st.booleans()), max_size=120),
    st.sampled_from([float("inf"), 30.0]),
)
def test_a_flood_leaves_an_accepted_command_its_place(
    steps: list[tuple[float, int, int, bool]], yield_s: float
) -> None:
    """Whatever is put: entries stay until they expire, or for 30 s, and no bound is exceeded."""
    window: OnceWindow[int] = OnceWindow(limit=8, each=4, reserve=2, yield_s=yield_s)
    stored: dict[int, tuple[float, float, int, bool]] = {}
    now_s = 0.0
    for number, (gap_s, sender, life_s, reserved) in enumerate(steps):
        now_s += gap_s
        try:
            window.put((str(number),), str(sender), number, now_s, now_s + life_s, reserved=reserved)
            stored[number] = now_s, now_s + life_s, sender, reserved
        except Rejected as exc:
            assert exc.code is Code.RATE_LIMITED
            assert (exc.retry_after_s or 0) >= 1
        kept = {one for one in stored if window.seen((str(one),), now_s) is not None}
        for one, (put_s, until_s, _, _) in stored.items():
            assert one not in kept or now_s < until_s
            assert one in kept or now_s >= min(until_s, put_s + yield_s)
        assert len(window) == len(kept) <= 10
        for each in range(4):
            assert sum(stored[one][2] == each for one in kept) <= 6


@given(st.lists(st.tuples(st.sampled_from("pdf"), st.integers(0, 5), st.integers(1, 30)), max_size=80))
def test_once_window_behaves_like_a_dictionary_with_expiry(steps: list[tuple[str, int, int]]) -> None:
    window: OnceWindow[int] = OnceWindow(limit=4, each=4)
    plain: dict[str, int] = {}
    for now_s, (step, number, life_s) in enumerate(steps):
        entry_id = str(number)
        plain = {key: until_s for key, until_s in plain.items() if until_s > now_s}
        if step == "d":
            window.drop((entry_id,))
            plain.pop(entry_id, None)
        elif window.seen((entry_id,), now_s) is None and len(plain) < 4:
            window.put((entry_id,), "a", now_s + life_s, now_s, now_s + life_s)
            plain[entry_id] = now_s + life_s
        assert {str(key): window.seen((str(key),), now_s) for key in range(6)} == {
            str(key): plain.get(str(key)) for key in range(6)
        }
        assert len(window) == len(plain)


def test_flooding_sender_does_not_use_up_the_rates_of_others_or_of_sessions() -> None:
    rates = CommandRates(each_per_s=5, all_per_s=20)
    rates.wait_s("flood", -30, about_session=False)
    rates.wait_s("watcher", -30, about_session=False)
    taken = [rates.wait_s("flood", 0, about_session=False) is None for _ in range(100)]
    assert taken.count(True) == 20
    assert rates.wait_s("flood", 0, about_session=False) == pytest.approx(0.2)
    assert rates.wait_s("other", 0, about_session=False) is None
    for number in range(5000):
        rates.wait_s(f"made-up-{number}", 0, about_session=False)
    assert rates.wait_s("another", 0, about_session=False) is not None
    assert rates.wait_s("watcher", 0, about_session=False) is None, "heard lately"
    assert rates.wait_s("another", 0, about_session=True) is None
    assert rates.wait_s("flood", 10, about_session=False) is None


_SENT = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 5), st.booleans()), max_size=120)


@given(each=st.floats(0.1, 50), in_all=st.floats(0.1, 50), sent=_SENT)
def test_a_fair_budget_exceeds_neither_the_rate_of_each_nor_that_of_all(
    each: float, in_all: float, sent: list[tuple[float, int, bool]]
) -> None:
    budget, now_s = FairBudget(each, in_all), 0.0
    accepted: list[tuple[float, int]] = []
    for gap_s, sender, twice in sent:
        now_s += gap_s
        for _ in range(1 + 20 * twice):
            exhausted = budget.exhausted(str(sender), now_s)
            wait_s = budget.wait_s(str(sender), now_s)
            assert wait_s is None or wait_s > 0
            assert not (exhausted and wait_s is None), "it says beforehand what would be refused"
            if wait_s is None:
                accepted.append((now_s, sender))
    for since_s, _ in accepted:
        inside = [(at_s - since_s, sender) for at_s, sender in accepted if at_s >= since_s]
        for number, (passed_s, sender) in enumerate(inside, 1):
            assert number <= in_all * (passed_s + 4) + 2.01
            own = sum(one == sender for _, one in inside[:number])
            assert own <= each * passed_s + max(1, 4 * each) + 0.01


@given(loud=st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 3)), max_size=200), gap_s=st.floats(0, 50))
def test_a_sender_that_was_not_heard_lately_is_accepted_whatever_the_others_send(
    loud: list[tuple[float, int]], gap_s: float
) -> None:
    budget, now_s = FairBudget(each_per_s=50, all_per_s=40), 0.0
    for sender in range(4):
        budget.wait_s(str(sender), now_s)
    now_s = gap_s
    for further_s, sender in loud:
        now_s += further_s
        budget.wait_s(str(sender), now_s)
    assert budget.wait_s("quiet", now_s) is None


SHARES = {Work.READ: 0.1, Work.CHECK: 0.3, Work.REPEAT: 0.1}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.01), st.sampled_from([None, "known", "new"])), max_size=200))
def test_the_unproven_take_a_bounded_share_of_the_time(messages: list[tuple[float, float, str | None]]) -> None:
    shares = {Work.READ: 0.2, Work.CHECK: 0.1, Work.REPEAT: 0.05}
    unproven, now_s, spent_s = Unproven(50, shares, burst_s=0.1), 0.0, dict.fromkeys(Work, 0.0)
    unproven.proved("known", "anna")
    for gap_s, cost_s, client in messages:
        now_s += gap_s
        work = None
        if unproven.admit(now_s):
            work = Work.READ
        elif unproven.admit_repeat("anna" if client == "known" else None, now_s):
            work = Work.REPEAT
        elif unproven.admit_check(client, "anna", now_s):
            work = Work.CHECK
        if work is not None:
            now_s += cost_s
            spent_s[work] += cost_s
            unproven.charge(cost_s, now_s, work)
        for each, share in shares.items():
            assert spent_s[each] <= 0.1 + share * now_s + 0.011


def test_signatures_of_known_clients_are_checked_when_the_others_have_used_up_their_time() -> None:
    unproven = Unproven(50, SHARES)
    unproven.proved("bff-1", "anna")
    unproven.charge(0.21, 0, Work.READ)
    assert not unproven.admit(0)
    assert unproven.admit_check(None, None, 0)
    unproven.charge(0.11, 0, Work.CHECK)
    assert not unproven.admit_check(None, None, 0)
    assert not unproven.admit_check("bff-2", None, 0)
    assert [unproven.admit_check("bff-1", None, 0) for _ in range(300)].count(True) == 200
    assert [unproven.admit_check("bff-1", None, 0.1) for _ in range(300)].count(True) == 300, "there is time for all"
    for number in range(5000):
        unproven.proved(f"bff-{number}", f"viewer-{number}")
    assert len(unproven._clients) == len(unproven._introduced) == 1024
    for number in range(50):
        unproven.proved(f"made-up-{number}", "hostile")
    assert [name for name in unproven._clients if name.startswith("made-up")] == ["made-up-49"]


@given(st.lists(st.sampled_from(["stranger", "client", "subject", "both"]), max_size=400))
def test_forged_claims_of_every_kind_leave_time_for_repeated_tokens(claims: list[str]) -> None:
    unproven = Unproven(50, SHARES)
    unproven.proved("bff-1", "anna")
    named = {"subject", "both"} & set(claims)
    for number, claim in enumerate(claims):
        now_s = number * 0.0005
        client = "bff-1" if claim in {"client", "both"} else "made-up"
        subject = "anna" if claim in {"subject", "both"} else "mallory"
        assert not unproven.admit_repeat(None, now_s)
        if unproven.admit_check(client, subject, now_s):
            unproven.charge(0.002, now_s, Work.CHECK)
        if number % 40 == 0:
            assert unproven.admit_repeat("anna", now_s)
            assert named or unproven.admit_check("bff-1", "anna", now_s)


def test_a_subject_that_repeats_its_token_in_a_flood_is_limited_and_leaves_time_for_the_others() -> None:
    unproven = Unproven(50, SHARES)
    for subject in ("anna", "hostile"):
        unproven.proved("bff-1", subject)
    allowed = [unproven.admit_repeat("hostile", 0) for _ in range(500)]
    assert allowed.count(True) == 50
    assert unproven.admit_repeat("anna", 0)
    assert not unproven.admit_repeat("boris", 0), "it was not proved lately"
    unproven.charge(0.3, 0, Work.REPEAT)
    assert not unproven.admit_repeat("anna", 0)
    assert unproven.admit_check("bff-1", "anna", 0), "another share"


def test_a_pause_of_the_machine_is_no_lasting_debt_of_the_unproven() -> None:
    unproven = Unproven(50, SHARES)
    for work in Work:
        unproven.charge(20, 20, work)
    assert not unproven.admit(20)
    assert not unproven.admit_check(None, None, 20)
    assert unproven.admit(22.1)
    assert unproven.admit_check(None, None, 22.1)
