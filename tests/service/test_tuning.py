"""Settings from afar: applied, tried with the camera, put back, kept; with a camera and a file in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.core.admission import admit
from edge.errors import CameraUnavailable, Rejected
from edge.sessions.wish import StreamWish
from edge.settings import Settings, tunable, tuned
from edge.tuning.service import Tuning
from edge.tuning.state import recall
from tests.service.fakes import FakeKept
from tests.unit.test_tuning import FILE, LESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from edge.errors import EdgeError

FILES = Settings(**FILE)
FEWER = {"sessions": {"max_viewers": 2}}
BAD = {"sessions": {"max_viewers": 0}}


class FakeCamera:
    """Gives a picture where `works` is set."""

    def __init__(self) -> None:
        self.works = asyncio.Event()
        self.works.set()
        self.error: CameraUnavailable | None = None
        self.sd_error: CameraUnavailable | None = None
        self.tried: list[bool] = []

    async def picture(self, *, sd: bool) -> None:
        self.tried.append(sd)
        await self.works.wait()
        if sd and self.sd_error:
            raise self.sd_error


class House:
    """The use case between a camera and a file. Make another one with the same `kept`: a restart."""

    def __init__(self, kept: FakeKept, trial_s: float) -> None:
        self.kept = kept
        self.camera = FakeCamera()
        self.wish = StreamWish(FakeKept())
        self.applied: list[dict[str, Any]] = []
        self.on_disk: list[dict[str, Any]] = []
        self.events: list[tuple[str, int | None]] = []
        self.errors: list[EdgeError] = []
        self.refusal: Rejected | None = None
        self.uses = 0
        self.used = 0
        self.changed = asyncio.Event()
        self.tuning = Tuning(
            recall(kept.read(), self._check),
            kept,
            self.camera,
            self.wish,
            self._open,
            check=self._check,
            apply=self._apply,
            on_change=self.changed.set,
            notice=lambda kind, _, body: self.events.append((kind, body["version"])),
            refused=self.errors.append,
            trial_s=trial_s,
        )

    def _check(self, desired: dict[str, Any]) -> dict[str, Any]:
        return tunable(tuned(FILES, desired))

    def _apply(self, desired: dict[str, Any]) -> None:
        self.applied.append(desired)
        # What was on disk when it took effect.
        self.on_disk.append(self.kept.fields or {})

    @contextmanager
    def _open(self) -> Iterator[None]:
        admit(running=self.wish.running, sessions=0, max_viewers=1)
        if self.refusal is not None:
            raise self.refusal
        self.uses += 1
        self.used += 1
        try:
            yield
        finally:
            self.uses -= 1

    @property
    def outcome(self) -> tuple[str, int | None] | None:
        outcome = self.tuning.report()["outcome"]
        return (outcome["state"], outcome["version"]) if outcome else None

    async def becomes(self, state: str, version: int | None) -> None:
        async with asyncio.timeout(5):
            while self.outcome != (state, version):
                self.changed.clear()
                await self.changed.wait()

    def wished(self, *, running: bool) -> None:
        self.wish.change(running=running, reason=None, bitrates={})


@asynccontextmanager
async def house(kept: FakeKept | None = None, trial_s: float = 60) -> AsyncIterator[House]:
    made = House(kept or FakeKept(), trial_s)
    task = asyncio.create_task(made.tuning.run(asyncio.Event()))
    try:
        yield made
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.uses == 0


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_does_not_touch_the_camera_holds_at_once() -> None:
    async with house() as h:
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("applied", 1)
        assert (h.applied, h.used) == ([FEWER], 0)
        assert h.tuning.report()["sessions"] == {"max_viewers": 2}
        assert h.events == [("settings.applied", 1)]
        # The same again changes nothing; anew, it is told, and nothing happens to the camera.
        h.tuning.desire(FEWER, 2, None)
        await settled()
        assert len(h.applied) == 1
        h.tuning.desire(FEWER, 3, "anew")
        await h.becomes("applied", 3)
        assert h.used == 0


async def test_one_fault_refuses_all_and_is_not_looked_at_again() -> None:
    async with house() as h:
        h.tuning.desire({**LESS, **BAD, "extra": 1}, 1, None)
        await h.becomes("refused", 1)
        outcome = h.tuning.report()["outcome"]
        assert {reason.partition(":")[0] for reason in outcome["reasons"]} == {"sessions.max_viewers", "extra"}
        assert (h.applied, h.used) == ([], 0)
        assert h.tuning.report()["camera"]["hd"]["max_bps"] == 1_500_000
        assert (h.events, len(h.errors)) == ([("settings.refused", 1)], 1)
        h.tuning.desire({**LESS, **BAD, "extra": 1}, 2, None)
        await settled()
        assert len(h.events) == 1


async def test_other_ranges_open_the_camera_and_hold_once_it_gave_a_picture() -> None:
    async with house() as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        assert (h.applied, h.uses) == ([LESS], 1)
        assert h.tuning.report()["camera"]["hd"]["max_bps"] == 1_000_000
        # Known to be under way before it took effect.
        assert h.on_disk[0]["trial"] == {"desired": LESS, "version": 1, "begun": True}
        h.camera.works.set()
        await h.becomes("applied", 1)
        assert (h.applied, h.events) == ([LESS], [("settings.applied", 1)])
    async with house(h.kept) as again:
        assert again.tuning.report()["camera"]["hd"]["max_bps"] == 1_000_000
        assert again.outcome == ("applied", 1)
        again.tuning.desire(LESS, 7, None)
        await settled()
        assert (again.applied, again.events) == ([], [])


async def test_no_picture_in_time_puts_them_back_and_they_are_not_tried_again() -> None:
    async with house(trial_s=0.05) as h:
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("applied", 1)
        h.camera.works.clear()
        h.camera.error = CameraUnavailable("no sensor")
        h.tuning.desire({**LESS, "log": {"level": "debug"}}, 2, None)
        await h.becomes("rolled_back", 2)
        assert h.applied[-1] == FEWER
        report = h.tuning.report()
        assert (report["sessions"], report["log"]) == ({"max_viewers": 2}, {"level": "info"})
        assert "no sensor" in report["outcome"]["reasons"][0]
        assert h.events[-1] == ("settings.rolled_back", 2)
        used = h.used
        h.tuning.desire({**LESS, "log": {"level": "debug"}}, 3, None)
        await settled()
        assert (h.used, h.outcome) == (used, ("rolled_back", 2))
    async with house(h.kept) as again:
        again.tuning.desire({**LESS, "log": {"level": "debug"}}, 4, None)
        await settled()
        assert (again.applied, again.events) == ([], [])
        # Desired anew (AWS has another time for it), it is tried anew.
        again.tuning.desire({**LESS, "log": {"level": "debug"}}, 5, "later")
        await again.becomes("applied", 5)


async def test_who_dies_in_the_trial_comes_back_with_the_earlier_settings() -> None:
    async with house() as h:
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("applied", 1)
        h.camera.works.clear()
        h.tuning.desire(LESS, 2, None)
        await h.becomes("trying", 2)
    async with house(h.kept) as again:
        assert again.tuning.report()["sessions"] == {"max_viewers": 2}
        await again.becomes("rolled_back", 2)
        await settled()
        assert again.events == [("settings.rolled_back", 2)]
        again.tuning.desire(LESS, 3, None)
        await settled()
        assert (again.applied, again.used) == ([], 0)
    async with house(h.kept) as third:
        await settled()
        assert (third.outcome, third.events) == (("rolled_back", 2), [])


async def test_stopped_by_the_operator_the_trial_waits_also_over_a_restart() -> None:
    async with house(trial_s=0.05) as h:
        h.wished(running=False)
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await asyncio.sleep(0.1)
        assert (h.outcome, h.used, h.applied) == (("trying", 1), 0, [LESS])
        assert "stopped" in h.tuning.report()["outcome"]["reasons"][0]
    async with house(h.kept, trial_s=0.05) as again:
        again.camera.works.clear()
        await again.becomes("rolled_back", 1)
        assert (again.used, again.applied) == (1, [{}])


async def test_stopped_in_the_trial_it_begins_anew_when_it_is_started() -> None:
    async with house(trial_s=0.3) as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.wished(running=False)
        await settled()
        assert h.uses == 0
        assert h.kept.fields is not None
        assert h.kept.fields["trial"]["begun"] is False
        await asyncio.sleep(0.4)
        assert h.outcome == ("trying", 1)
        h.wished(running=True)
        await settled()
        assert h.uses == 1
        h.camera.works.set()
        await h.becomes("applied", 1)


async def test_what_comes_in_a_trial_takes_its_place_or_leaves_it_alone() -> None:
    async with house(trial_s=0.5) as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        # Faulty: refused, and the trial goes on, with the time that it has.
        h.tuning.desire(BAD, 2, None)
        await h.becomes("refused", 2)
        await h.becomes("rolled_back", 1)
        assert h.applied == [LESS, {}]
        h.tuning.desire(LESS, 3, "anew")
        await h.becomes("trying", 3)
        # The camera as it was before: nothing to try.
        h.tuning.desire(FEWER, 4, None)
        await h.becomes("applied", 4)
        await settled()
        assert (h.uses, h.applied[-1]) == (0, FEWER)


async def begun_on_disk(h: House) -> bool:
    await settled()
    assert h.kept.fields is not None
    return bool(h.kept.fields["trial"]["begun"])


async def test_stopped_again_while_the_trial_is_written_down_it_waits() -> None:
    async with house() as h:
        h.wished(running=False)
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.kept.gate.clear()
        h.wished(running=True)
        await settled()
        h.wished(running=False)
        h.kept.gate.set()
        assert await begun_on_disk(h) is False
        assert h.used == 0
        h.wished(running=True)
        await h.becomes("applied", 1)


async def test_a_camera_that_may_not_be_opened_now_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.tuning.service._AGAIN_S", 0.01)
    async with house() as h:
        h.refusal = Rejected(Code.STOPPED, "not now")
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        while h.tuning.report()["outcome"]["reasons"] != ["they are tried later: not now"]:
            await settled()
        assert (await begun_on_disk(h), h.used) == (False, 0)
        h.refusal = None
        await h.becomes("applied", 1)


async def test_another_range_of_sd_has_to_give_a_picture_of_sd() -> None:
    async with house() as h:
        h.tuning.desire(LESS, 1, None)
        await h.becomes("applied", 1)
        h.camera.sd_error = CameraUnavailable("SD cannot be encoded: no memory")
        both = {"camera": {**LESS["camera"], "sd": {"max_bps": 500_000}}}
        h.tuning.desire(both, 2, None)
        await h.becomes("rolled_back", 2)
        assert h.camera.tried == [False, True]
        assert (h.applied[-1], h.uses) == (LESS, 0)
        assert "no memory" in h.tuning.report()["outcome"]["reasons"][0]
        h.camera.sd_error = None
        h.tuning.desire(both, 3, "anew")
        await h.becomes("applied", 3)


async def test_what_the_disk_does_not_take_is_refused() -> None:
    async with house() as h:
        h.kept.full = True
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("refused", 1)
        assert "disk" in h.tuning.report()["outcome"]["reasons"][0]
        assert (h.applied, h.tuning.report()["sessions"]) == ([], {"max_viewers": 5})
        assert [error.code for error in h.errors] == [Code.INTERNAL]
        h.kept.full = False
        h.tuning.desire(FEWER, 2, "anew")
        await h.becomes("applied", 2)


@pytest.mark.parametrize("at", ["its beginning", "its end"])
async def test_a_trial_that_the_disk_does_not_take_is_put_back(at: str) -> None:
    async with house() as h:
        h.camera.works.clear()
        h.wished(running=at == "its end")
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.kept.full = True
        h.wished(running=True)
        h.camera.works.set()
        await h.becomes("rolled_back", 1)
        assert "disk" in h.tuning.report()["outcome"]["reasons"][0]
        assert (h.applied, h.used) == ([LESS, {}], 1 if at == "its end" else 0)


async def test_the_last_version_is_known_after_a_restart_whatever_became_of_it() -> None:
    async with house() as h:
        assert h.tuning.version is None
        h.tuning.desire(FEWER, 4, 4)
        await h.becomes("applied", 4)
        h.tuning.desire(BAD, 5, 5)
        await h.becomes("refused", 5)
    async with house(h.kept) as again:
        assert again.tuning.version == 5
        # One without a version: what comes then counts anew.
        again.tuning.desire(FEWER, None, None)
        await again.becomes("applied", None)
        assert again.tuning.version is None
