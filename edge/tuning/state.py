"""The stored state of remote settings. They survive a restart, and a trial does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.contract.shadow import Outcome
from edge.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.core.ports import StateStore
    from edge.core.tuning import SettingsValues

_REASONS = 16
_REASON_LIMIT = 200


class Trial(BaseModel):
    """Settings that are tried: the camera must deliver frames with them. `begun`: the camera may have used them."""

    model_config = ConfigDict(frozen=True)

    desired: dict[str, Any]
    version: int | None
    begun: bool


class State(BaseModel):
    """The state of remote settings.

    `confirmed`: the desired settings in force that passed their trial or needed none. `mark`, `version`: of the last
    desired document, accepted or not. `fresh`: the restart changed the state, which is not stored and not reported yet.
    """

    model_config = ConfigDict(frozen=True)

    confirmed: dict[str, Any] = Field(default_factory=dict)
    trial: Trial | None = None
    mark: str | None = None
    version: int | None = None
    outcome: Outcome | None = None
    fresh: bool = Field(default=False, exclude=True)

    @property
    def desired(self) -> SettingsValues:
        """The desired settings in force."""
        return self.trial.desired if self.trial else self.confirmed

    def to(self, **changes: Any) -> State:  # noqa: ANN401  a field's value
        return self.model_copy(update=changes)


def recall(store: StateStore, check: Callable[[SettingsValues], SettingsValues]) -> State:
    """The state after a restart. A trial that had begun has failed; settings that are no longer valid are dropped."""
    fields = store.read()
    if fields is None:
        return State()
    try:
        state = State.model_validate(fields)
    except ValidationError as exc:
        store.set_aside(f"{exc.error_count()} fields of the remote settings are not valid")
        return State()
    if state.trial is not None and state.trial.begun:
        why = "the device restarted before the camera delivered a frame with them"
        state = state.to(trial=None, outcome=rolled_back(state.trial.version, [why]), fresh=True)
    try:
        check(state.confirmed)
        check(state.desired)
    except ConfigInvalid as exc:
        why = "the stored settings are not valid with this settings file"
        # Without the mark the desired document is checked and reported again.
        return State(version=state.version, outcome=rolled_back(None, [why, *exc.faults]), fresh=True)
    return state


def rolled_back(version: int | None, reasons: Sequence[str]) -> Outcome:
    """The outcome of a version that was rolled back."""
    return Outcome(state="rolled_back", version=version, reasons=bounded(reasons))


def bounded(reasons: Sequence[str]) -> list[str]:
    """As many reasons as fit a report."""
    shown = [reason[:_REASON_LIMIT] for reason in reasons[:_REASONS]]
    return shown if len(reasons) <= _REASONS else [*shown, f"and {len(reasons) - _REASONS} more"]
