"""Settings from afar: applied, tried with the camera, put back, kept; with a camera and a file in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.errors import CameraUnavailable
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

    async def picture(self) -> None:
        await self.works.wait()


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
