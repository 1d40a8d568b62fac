"""Remote settings: checked as a whole, applied, tried if the camera is affected, stored, or rolled back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.contract.codes import Code
from edge.contract.shadow import Outcome
from edge.core.tuning import mark, over, same_encoding, same_range
from edge.errors import CameraUnavailable, ConfigInvalid, EdgeError, Rejected
from edge.tuning.state import Trial, bounded, rolled_back

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractContextManager

    from edge.core.ports import StateStore
    from edge.core.tuning import SettingsValues
    from edge.tuning.ports import Stream, TunableCamera
    from edge.tuning.state import State

log = logging.getLogger(__name__)

TRIAL_S = 60.0
_RETRY_S = 1.0
_NOT_STORED = "the device's disk cannot be written: the settings would not survive a restart"


class _Desired(NamedTuple):
    values: SettingsValues
    version: int | None
    mark: str


class Tuning:
    """Applies desired settings; another part receives and reports them. Event loop only.

    A changed bitrate range is tried: the camera is opened again, even without viewers, and must deliver a frame within
    `trial_s`. While the operator has stopped the stream, the trial waits. All other settings apply at once. Settings
    that cannot be stored are refused or rolled back.

    `state`: as recalled. `open_camera`: a context in which the camera is open. `check` returns the settings that would
    be in force, or raises ConfigInvalid. `apply` applies checked settings to all parts. `on_change`: `report` has
    changed. `publish_event` publishes an event. `refused` receives the error of settings that did not take effect.
    """

    def __init__(
        self,
        state: State,
        store: StateStore,
        camera: TunableCamera,
        stream: Stream,
        open_camera: Callable[[], AbstractContextManager[None]],
        *,
        check: Callable[[SettingsValues], SettingsValues],
        apply: Callable[[SettingsValues], None],
        on_change: Callable[[], None],
        publish_event: Callable[[str, str | None, dict[str, Any]], None],
        refused: Callable[[EdgeError], None],
        trial_s: float = TRIAL_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._store = store
        self._check = check
        self._apply = apply
        self._camera = camera
        self._stream = stream
        self._open_camera = open_camera
        self._on_change = on_change
        self._publish_event = publish_event
        self._refused = refused
        self._trial_s = trial_s
        self._now_s = now_s
        self._until_s: float | None = None
        self._next: _Desired | None = None
        self._received = asyncio.Event()

    def desire(self, values: SettingsValues, version: int | None, stamp: object) -> None:
        """Take a desired document; only the newest counts. One with the same values and stamp changes nothing."""
        self._next = _Desired(values, version, mark(values, stamp))
        self._received.set()

    @property
    def version(self) -> int | None:
        """The version of the last desired document that was checked, also before a restart; None: there is none."""
        return self._state.version

    def report(self) -> dict[str, Any]:
        """The settings in force, and the outcome of the last desired document."""
        outcome = self._state.outcome
        return {**self._in_force(self._state.desired), "outcome": outcome.model_dump() if outcome else None}

    async def run(self, ready: asyncio.Event) -> None:
        """Apply desired documents until cancelled."""
        ready.set()
        if self._state.fresh and self._state.outcome is not None:
            await self._set_state(self._state.to(fresh=False))
            self._report_rollback(self._state.outcome)
        while True:
            if self._state.trial is None:
                await self._received.wait()
            else:
                await self._try(self._state.trial)
            self._received.clear()
            desired, self._next = self._next, None
            if desired is not None and desired.mark != self._state.mark:
                await self._take(desired)

    async def _take(self, desired: _Desired) -> None:
        try:
            values = self._in_force(desired.values)
        except ConfigInvalid as exc:
            await self._refuse(desired, exc.faults, Code.BAD_MESSAGE)
            return
        known = self._state.to(mark=desired.mark, version=desired.version)
        if same_encoding(values, self._in_force(self._state.confirmed)):
            outcome = Outcome(state="applied", version=desired.version)
            state = known.to(confirmed=desired.values, trial=None, outcome=outcome)
        else:
            trial = Trial(desired=desired.values, version=desired.version, begun=self._stream.running)
            outcome = Outcome(state="trying", version=desired.version)
            state = known.to(trial=trial, outcome=outcome)
        before = self._state
        # Stored before it is applied: the camera may crash this process with these settings.
        if not await self._store_state(state):
            await self._refuse(desired, [_NOT_STORED], Code.INTERNAL)
            return
        if not same_encoding(values, self._in_force(before.desired)):
            self._until_s = None
        self._apply(desired.values)
        if state.trial is None:
            self._publish_outcome("settings.applied", outcome)

    async def _refuse(self, desired: _Desired, reasons: Sequence[str], code: Code) -> None:
        outcome = Outcome(state="refused", version=desired.version, reasons=bounded(reasons))
        await self._set_state(self._state.to(mark=desired.mark, version=desired.version, outcome=outcome))
        self._publish_outcome("settings.refused", outcome, Rejected(code, f"settings: {_words(outcome)}"))

    async def _try(self, trial: Trial) -> None:
        """Wait until the trial is over, the stream starts or stops, or a document arrives."""
        if not self._stream.running:
            self._until_s = None
            await self._hold(
                trial, begun=False, reasons=["the stream is stopped; the settings are tried when it starts"]
            )
            await _first(self._stream.until(running=True), self._received.wait())
            return
        if self._until_s is None:
            if not await self._hold(trial, begun=True, reasons=[]):
                await self._roll_back(trial, _NOT_STORED)
                return
            self._until_s = self._now_s() + self._trial_s
        try:
            if await self._delivers_frames(trial, self._until_s):
                await self._confirm(trial)
        except CameraUnavailable as exc:
            await self._roll_back(trial, f"the camera did not deliver a frame with these settings: {exc.detail}")
        except EdgeError as exc:
            # The camera was not opened: the stream stopped while the state was stored, or the device shuts down.
            self._until_s = None
            await self._hold(trial, begun=False, reasons=[f"the settings are tried later: {exc.message}"])
            await _first(self._received.wait(), timeout_s=_RETRY_S)

    async def _delivers_frames(self, trial: Trial, until_s: float) -> bool:
        """Whether there was a frame. False: the stream stopped, or a document arrived.

        Raises: CameraUnavailable: there was no frame in time. EdgeError: the camera cannot be opened now.
        """
        sd = not same_range(self._in_force(trial.desired), self._in_force(self._state.confirmed), "sd")
        with self._open_camera():
            waits = self._camera.picture(sd=sd), self._stream.until(running=False), self._received.wait()
            ended = await _first(*waits, timeout_s=max(0.0, until_s - self._now_s()))
            if ended is None:
                error = self._camera.error
                raise CameraUnavailable(error.detail if error else f"no frame within {self._trial_s:g} s")
        return ended == 0

    async def _hold(self, trial: Trial, *, begun: bool, reasons: list[str]) -> bool:
        """Store the progress of the trial; whether it is on the disk."""
        outcome = self._state.outcome
        if outcome is not None and outcome.state == "trying":
            outcome = outcome.model_copy(update={"reasons": reasons})
        changed = self._state.to(trial=trial.model_copy(update={"begun": begun}), outcome=outcome)
        return changed == self._state or await self._store_state(changed)

    async def _confirm(self, trial: Trial) -> None:
        outcome = Outcome(state="applied", version=trial.version)
        refused = self._state.outcome is not None and self._state.outcome.state == "refused"
        # A document that was refused during the trial is the newer one, and its outcome is reported.
        reported = self._state.outcome if refused else outcome
        if not await self._store_state(self._state.to(confirmed=trial.desired, trial=None, outcome=reported)):
            await self._roll_back(trial, _NOT_STORED)
            return
        self._publish_outcome("settings.applied", outcome)

    async def _roll_back(self, trial: Trial, why: str) -> None:
        outcome = rolled_back(trial.version, [why])
        self._apply(self._state.confirmed)
        await self._set_state(self._state.to(trial=None, outcome=outcome))
        self._report_rollback(outcome)

    def _report_rollback(self, outcome: Outcome) -> None:
        self._publish_outcome("settings.rolled_back", outcome, CameraUnavailable(f"settings: {_words(outcome)}"))

    async def _set_state(self, state: State) -> None:
        """Change the state, also if it cannot be stored."""
        if not await self._store_state(state):
            self._state = state
            self._on_change()

    async def _store_state(self, state: State) -> bool:
        """Change the state if it can be stored; whether it was."""
        if not await self._store.write(state.model_dump(mode="json")):
            return False
        self._state = state
        self._on_change()
        return True

    def _publish_outcome(self, kind: str, outcome: Outcome, error: EdgeError | None = None) -> None:
        event = kind.replace(".", " ").replace("_", " ")
        level = logging.WARNING if error else logging.INFO
        log.log(level, "%s version=%s reasons=%s", event, outcome.version, _words(outcome) or "none")
        self._publish_event(kind, None, {"version": outcome.version, "reasons": outcome.reasons})
        if error is not None:
            self._refused(error)

    def _in_force(self, desired: SettingsValues) -> SettingsValues:
        """Raises: ConfigInvalid."""
        # Desired values as they were written: AWS IoT would see a difference between 30 and 30.0.
        return over(self._check(desired), desired)


def _words(outcome: Outcome) -> str:
    return "; ".join(outcome.reasons)


async def _first(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> int | None:
    """The number of the wait that ends first; None: none does in time. Raises: its error."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for number, task in enumerate(tasks):
        if task in done:
            task.result()
            return number
    return None
