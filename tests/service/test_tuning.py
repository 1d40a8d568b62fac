"""Remote settings are applied, tried, rolled back and stored, with a camera and a file in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.core.admission import admit_use
from edge.errors import CameraUnavailable, Rejected
from edge.sessions.desired_stream import DesiredStream
from edge.settings import Settings, tunable, tuned
from edge.tuning.service import Tuning
from edge.tuning.state import recall
from tests.service.fakes import FakeStateStore
from tests.unit.test_tuning import FILE, LESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from edge.errors import EdgeError

FILES = Settings(**FILE)
FEWER = {"sessions": {"max_viewers": 2}}
BAD = {"sessions": {"max_viewers": 0}}


class FakeCamera:
    """Delivers a frame if `works` is set."""

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


class Rig:
    """The service between a camera and a file. A new one with the same `store` is a restart."""

    def __init__(self, store: FakeStateStore, trial_s: float) -> None:
        self.store = store
        self.camera = FakeCamera()
        self.desired = DesiredStream(FakeStateStore())
        self.applied: list[dict[str, Any]] = []
        self.on_disk: list[dict[str, Any]] = []
        self.events: list[tuple[str, int | None]] = []
        self.errors: list[EdgeError] = []
        self.refusal: Rejected | None = None
        self.uses = 0
        self.used = 0
        self.changed = asyncio.Event()
        self.tuning = Tuning(
            recall(store, self._check),
            store,
            self.camera,
            self.desired,
            self._open,
            check=self._check,
            apply=self._apply,
            on_change=self.changed.set,
            publish_event=lambda kind, _, body: self.events.append((kind, body["version"])),
            refused=self.errors.append,
            trial_s=trial_s,
        )

    def _check(self, desired: dict[str, Any]) -> dict[str, Any]:
        return tunable(tuned(FILES, desired))

    def _apply(self, desired: dict[str, Any]) -> None:
        self.applied.append(desired)
        # What was stored when it took effect.
        self.on_disk.append(self.store.fields or {})

    @contextmanager
    def _open(self) -> Iterator[None]:
        admit_use(running=self.desired.running)
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

    def set_running(self, *, running: bool) -> None:
        self.desired.change(running=running, reason=None, bitrates={})


@asynccontextmanager
async def rig(store: FakeStateStore | None = None, trial_s: float = 60) -> AsyncIterator[Rig]:
    made = Rig(store or FakeStateStore(), trial_s)
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


async def test_settings_without_effect_on_the_camera_apply_at_once() -> None:
    async with rig() as h:
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("applied", 1)
        assert (h.applied, h.used) == ([FEWER], 0)
        assert h.tuning.report()["sessions"] == {"max_viewers": 2}
        assert h.events == [("settings.applied", 1)]
        # The same document changes nothing; with a new stamp it is reported, and the camera is not opened again.
        h.tuning.desire(FEWER, 2, None)
        await settled()
        assert len(h.applied) == 1
        h.tuning.desire(FEWER, 3, "new stamp")
        await h.becomes("applied", 3)
        assert h.used == 0


async def test_one_fault_refuses_the_document_which_is_checked_once() -> None:
    async with rig() as h:
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


async def test_a_new_range_is_confirmed_by_a_frame() -> None:
    async with rig() as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        assert (h.applied, h.uses) == ([LESS], 1)
        assert h.tuning.report()["camera"]["hd"]["max_bps"] == 1_000_000
        # The trial was stored before it took effect.
        assert h.on_disk[0]["trial"] == {"desired": LESS, "version": 1, "begun": True}
        h.camera.works.set()
        await h.becomes("applied", 1)
        assert (h.applied, h.events) == ([LESS], [("settings.applied", 1)])
    async with rig(h.store) as again:
        assert again.tuning.report()["camera"]["hd"]["max_bps"] == 1_000_000
        assert again.outcome == ("applied", 1)
        again.tuning.desire(LESS, 7, None)
        await settled()
        assert (again.applied, again.events) == ([], [])


async def test_a_trial_without_a_frame_is_rolled_back_and_not_repeated() -> None:
    async with rig(trial_s=0.05) as h:
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
    async with rig(h.store) as again:
        again.tuning.desire({**LESS, "log": {"level": "debug"}}, 4, None)
        await settled()
        assert (again.applied, again.events) == ([], [])
        # Desired again (with another timestamp of AWS), it is tried again.
        again.tuning.desire({**LESS, "log": {"level": "debug"}}, 5, "later")
        await again.becomes("applied", 5)


async def test_a_crash_in_the_trial_restores_the_earlier_settings() -> None:
    async with rig() as h:
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("applied", 1)
        h.camera.works.clear()
        h.tuning.desire(LESS, 2, None)
        await h.becomes("trying", 2)
    async with rig(h.store) as again:
        assert again.tuning.report()["sessions"] == {"max_viewers": 2}
        await again.becomes("rolled_back", 2)
        await settled()
        assert again.events == [("settings.rolled_back", 2)]
        again.tuning.desire(LESS, 3, None)
        await settled()
        assert (again.applied, again.used) == ([], 0)
    async with rig(h.store) as third:
        await settled()
        assert (third.outcome, third.events) == (("rolled_back", 2), [])


async def test_a_trial_waits_while_the_stream_is_stopped_also_over_a_restart() -> None:
    async with rig(trial_s=0.05) as h:
        h.set_running(running=False)
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await asyncio.sleep(0.1)
        assert (h.outcome, h.used, h.applied) == (("trying", 1), 0, [LESS])
        assert "stopped" in h.tuning.report()["outcome"]["reasons"][0]
    async with rig(h.store, trial_s=0.05) as again:
        again.camera.works.clear()
        await again.becomes("rolled_back", 1)
        assert (again.used, again.applied) == (1, [{}])


async def test_a_trial_that_a_stop_interrupts_begins_again_with_the_start() -> None:
    async with rig(trial_s=0.3) as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.set_running(running=False)
        await settled()
        assert h.uses == 0
        assert h.store.fields is not None
        assert h.store.fields["trial"]["begun"] is False
        await asyncio.sleep(0.4)
        assert h.outcome == ("trying", 1)
        h.set_running(running=True)
        await settled()
        assert h.uses == 1
        h.camera.works.set()
        await h.becomes("applied", 1)


async def test_a_document_during_a_trial_replaces_it_or_is_refused() -> None:
    async with rig(trial_s=0.5) as h:
        h.camera.works.clear()
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        # A faulty document is refused, and the trial continues with its remaining time.
        h.tuning.desire(BAD, 2, None)
        await h.becomes("refused", 2)
        await h.becomes("rolled_back", 1)
        assert h.applied == [LESS, {}]
        h.tuning.desire(LESS, 3, "new stamp")
        await h.becomes("trying", 3)
        # The camera settings are the earlier ones: there is nothing to try.
        h.tuning.desire(FEWER, 4, None)
        await h.becomes("applied", 4)
        await settled()
        assert (h.uses, h.applied[-1]) == (0, FEWER)


async def begun_on_disk(h: Rig) -> bool:
    await settled()
    assert h.store.fields is not None
    return bool(h.store.fields["trial"]["begun"])


async def test_a_stop_while_the_trial_is_stored_makes_it_wait() -> None:
    async with rig() as h:
        h.set_running(running=False)
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.store.gate.clear()
        h.set_running(running=True)
        await settled()
        h.set_running(running=False)
        h.store.gate.set()
        assert await begun_on_disk(h) is False
        assert h.used == 0
        h.set_running(running=True)
        await h.becomes("applied", 1)


async def test_a_camera_that_cannot_be_opened_now_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.tuning.service._RETRY_S", 0.01)
    async with rig() as h:
        h.refusal = Rejected(Code.STOPPED, "not now")
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        while h.tuning.report()["outcome"]["reasons"] != ["the settings are tried later: not now"]:
            await settled()
        assert (await begun_on_disk(h), h.used) == (False, 0)
        h.refusal = None
        await h.becomes("applied", 1)


async def test_a_new_sd_range_is_confirmed_by_an_sd_frame() -> None:
    async with rig() as h:
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
        h.tuning.desire(both, 3, "new stamp")
        await h.becomes("applied", 3)


async def test_settings_that_cannot_be_stored_are_refused() -> None:
    async with rig() as h:
        h.store.full = True
        h.tuning.desire(FEWER, 1, None)
        await h.becomes("refused", 1)
        assert "disk" in h.tuning.report()["outcome"]["reasons"][0]
        assert (h.applied, h.tuning.report()["sessions"]) == ([], {"max_viewers": 5})
        assert [error.code for error in h.errors] == [Code.INTERNAL]
        h.store.full = False
        h.tuning.desire(FEWER, 2, "new stamp")
        await h.becomes("applied", 2)


@pytest.mark.parametrize("at", ["its beginning", "its end"])
async def test_a_trial_that_cannot_be_stored_is_rolled_back(at: str) -> None:
    async with rig() as h:
        h.camera.works.clear()
        h.set_running(running=at == "its end")
        h.tuning.desire(LESS, 1, None)
        await h.becomes("trying", 1)
        await settled()
        h.store.full = True
        h.set_running(running=True)
        h.camera.works.set()
        await h.becomes("rolled_back", 1)
        assert "disk" in h.tuning.report()["outcome"]["reasons"][0]
        assert (h.applied, h.used) == ([LESS, {}], 1 if at == "its end" else 0)


async def test_the_last_version_survives_a_restart_with_any_outcome() -> None:
    async with rig() as h:
        assert h.tuning.version is None
        h.tuning.desire(FEWER, 4, 4)
        await h.becomes("applied", 4)
        h.tuning.desire(BAD, 5, 5)
        await h.becomes("refused", 5)
    async with rig(h.store) as again:
        assert again.tuning.version == 5
        # A document without a version resets the count.
        again.tuning.desire(FEWER, None, None)
        await again.becomes("applied", None)
        assert again.tuning.version is None
