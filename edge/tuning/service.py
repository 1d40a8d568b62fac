"""Settings from afar: checked as one, put in force, tried where the camera is touched, kept, or put back."""

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

    from edge.core.tuning import Values
    from edge.tuning.ports import Camera, Kept, Stream
    from edge.tuning.state import State

log = logging.getLogger(__name__)

TRIAL_S = 60.0
_AGAIN_S = 1.0
_NOT_KEPT = "the device's disk does not take it: it would not hold over a restart"


class _Desired(NamedTuple):
    values: Values
    version: int | None
    mark: str


class Tuning:
    """The use case, without a word of how documents come and go. Event loop only.

    Other bitrate ranges open the camera anew, also when nobody watches, and hold for good once it gave a picture within
    `trial_s`; while the operator has stopped the stream, that waits. Everything else holds at once. What the disk does
    not take is refused, or put back.
    `state`: as it was recalled. `open_camera`: around a use of the camera. `check` gives what would be in force with
    these, or raises ConfigInvalid; `apply` puts what was checked in force, in all parts that run. `on_change`: `report`
    changed. `notice`: an event. `refused`: why something did not take effect.
    """

    def __init__(
        self,
        state: State,
        kept: Kept,
        camera: Camera,
        stream: Stream,
        open_camera: Callable[[], AbstractContextManager[None]],
        *,
        check: Callable[[Values], Values],
        apply: Callable[[Values], None],
        on_change: Callable[[], None],
        notice: Callable[[str, str | None, dict[str, Any]], None],
        refused: Callable[[EdgeError], None],
        trial_s: float = TRIAL_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._kept = kept
        self._check = check
        self._apply = apply
        self._camera = camera
        self._stream = stream
        self._open_camera = open_camera
        self._on_change = on_change
        self._notice = notice
        self._refused = refused
        self._trial_s = trial_s
        self._now_s = now_s
        self._until_s: float | None = None
        self._next: _Desired | None = None
        self._came = asyncio.Event()

    def desire(self, values: Values, version: int | None, stamp: object) -> None:
        """A desired document; only the newest counts. One that came before, with the same stamp, changes nothing."""
        self._next = _Desired(values, version, mark(values, stamp))
        self._came.set()

    @property
    def version(self) -> int | None:
        """Of the last desired document that was looked at, over restarts; None: it had none, or there was none."""
        return self._state.version

    def report(self) -> dict[str, Any]:
        """The settings in force, and what became of those that were desired last."""
        outcome = self._state.outcome
        return {**self._in_force(self._state.desired), "outcome": outcome.model_dump() if outcome else None}

    async def run(self, ready: asyncio.Event) -> None:
        """Take what is desired until cancelled."""
        ready.set()
        if self._state.fresh and self._state.outcome is not None:
            await self._become(self._state.to(fresh=False))
            self._put_back(self._state.outcome)
        while True:
            if self._state.trial is None:
                await self._came.wait()
            else:
                await self._try(self._state.trial)
            self._came.clear()
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
        # On disk before it takes effect: what the camera does with it may be the end of this process.
        if not await self._keep(state):
            await self._refuse(desired, [_NOT_KEPT], Code.INTERNAL)
            return
        if not same_encoding(values, self._in_force(before.desired)):
            self._until_s = None
        self._apply(desired.values)
        if state.trial is None:
            self._give_notice("settings.applied", outcome)

    async def _refuse(self, desired: _Desired, reasons: Sequence[str], code: Code) -> None:
        outcome = Outcome(state="refused", version=desired.version, reasons=bounded(reasons))
        await self._become(self._state.to(mark=desired.mark, version=desired.version, outcome=outcome))
        self._give_notice("settings.refused", outcome, Rejected(code, f"settings: {_words(outcome)}"))

    async def _try(self, trial: Trial) -> None:
        """Until the trial is over, or something else happens that it depends on."""
        if not self._stream.running:
            self._until_s = None
            await self._hold(trial, begun=False, reasons=["the stream is stopped: they are tried when it is started"])
            await _first(self._stream.until(running=True), self._came.wait())
            return
        if self._until_s is None:
            if not await self._hold(trial, begun=True, reasons=[]):
                await self._roll_back(trial, _NOT_KEPT)
                return
            self._until_s = self._now_s() + self._trial_s
        try:
            if await self._pictured(trial, self._until_s):
                await self._confirm(trial)
        except CameraUnavailable as exc:
            await self._roll_back(trial, f"the camera did not open and give a picture with them: {exc.message}")
        except EdgeError as exc:
            # The camera was not opened: the stream was stopped while that was written down, or the device shuts down.
            self._until_s = None
            await self._hold(trial, begun=False, reasons=[f"they are tried later: {exc.message}"])
            await _first(self._came.wait(), timeout_s=_AGAIN_S)

    async def _pictured(self, trial: Trial, until_s: float) -> bool:
        """Whether there was a picture. False: something else happened that the trial depends on.

        Raises: CameraUnavailable: there was none in time, and why. EdgeError: the camera may not be opened now.
        """
        sd = not same_range(self._in_force(trial.desired), self._in_force(self._state.confirmed), "sd")
        with self._open_camera():
            waits = self._camera.picture(sd=sd), self._stream.until(running=False), self._came.wait()
            ended = await _first(*waits, timeout_s=max(0.0, until_s - self._now_s()))
            if ended is None:
                error = self._camera.error
                raise CameraUnavailable(error.message if error else f"no picture within {self._trial_s:g} s")
        return ended == 0

    async def _hold(self, trial: Trial, *, begun: bool, reasons: list[str]) -> bool:
        """Whether that is on disk."""
        outcome = self._state.outcome
        if outcome is not None and outcome.state == "trying":
            outcome = outcome.model_copy(update={"reasons": reasons})
        changed = self._state.to(trial=trial.model_copy(update={"begun": begun}), outcome=outcome)
        return changed == self._state or await self._keep(changed)

    async def _confirm(self, trial: Trial) -> None:
        outcome = Outcome(state="applied", version=trial.version)
        refused = self._state.outcome is not None and self._state.outcome.state == "refused"
        # What came during the trial and was refused is what a backend waits to hear of.
        told = self._state.outcome if refused else outcome
        if not await self._keep(self._state.to(confirmed=trial.desired, trial=None, outcome=told)):
            await self._roll_back(trial, _NOT_KEPT)
            return
        self._give_notice("settings.applied", outcome)

    async def _roll_back(self, trial: Trial, why: str) -> None:
        outcome = rolled_back(trial.version, [why])
        self._apply(self._state.confirmed)
        await self._become(self._state.to(trial=None, outcome=outcome))
        self._put_back(outcome)

    def _put_back(self, outcome: Outcome) -> None:
        self._give_notice("settings.rolled_back", outcome, CameraUnavailable(f"settings: {_words(outcome)}"))

    async def _become(self, state: State) -> None:
        """Whatever the disk does."""
        if not await self._keep(state):
            self._state = state
            self._on_change()

    async def _keep(self, state: State) -> bool:
        """Become this. False: the disk does not take it, and all is as it was."""
        if not await self._kept.write(state.model_dump(mode="json")):
            return False
        self._state = state
        self._on_change()
        return True

    def _give_notice(self, kind: str, outcome: Outcome, error: EdgeError | None = None) -> None:
        log.log(logging.WARNING if error else logging.INFO, "%s %s", kind, _words(outcome))
        self._notice(kind, None, {"version": outcome.version, "reasons": outcome.reasons})
        if error is not None:
            self._refused(error)

    def _in_force(self, desired: Values) -> Values:
        """Raises: ConfigInvalid."""
        # In the words of who desired it: AWS IoT would see a difference between 30 and 30.0.
        return over(self._check(desired), desired)


def _words(outcome: Outcome) -> str:
    return "; ".join(outcome.reasons)


async def _first(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> int | None:
    """Which of them ends first; None: none in time. Raises: what that raised."""
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
