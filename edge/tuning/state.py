"""What is kept of settings that were changed, so that they hold over a restart, and a trial does not outlive one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.contract.shadow import Outcome
from edge.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge.core.tuning import Values

log = logging.getLogger(__name__)

_REASONS = 16
_REASON_LIMIT = 200


class Trial(BaseModel):
    """Settings that still have to show that the camera opens with them. `begun`: it was let open with them."""

    model_config = ConfigDict(frozen=True)

    desired: dict[str, Any]
    version: int | None
    begun: bool


class State(BaseModel):
    """`confirmed`: what was desired and holds.

    `mark`, `version`: of the last desired document, whatever became of it.

    `fresh`: this restart changed it, which is neither on disk nor told yet.
    """

    model_config = ConfigDict(frozen=True)

    confirmed: dict[str, Any] = Field(default_factory=dict)
    trial: Trial | None = None
    mark: str | None = None
    version: int | None = None
    outcome: Outcome | None = None
    fresh: bool = Field(default=False, exclude=True)

    @property
    def desired(self) -> Values:
        """What is in force."""
        return self.trial.desired if self.trial else self.confirmed

    def to(self, **changes: Any) -> State:  # noqa: ANN401  a field's value
        return self.model_copy(update=changes)


def recall(fields: Mapping[str, Any] | None, check: Callable[[Values], Values]) -> State:
    """The state after a restart: a trial that had begun has failed, and what does not fit any more is dropped."""
    if fields is None:
        return State()
    try:
        state = State.model_validate(fields)
    except ValidationError as exc:
        log.warning("the settings that were kept cannot be read (%d faults): they do not count", exc.error_count())
        return State()
    if state.trial is not None and state.trial.begun:
        why = "the device restarted before the camera had shown a picture with them"
        state = state.to(trial=None, outcome=rolled_back(state.trial.version, [why]), fresh=True)
    try:
        check(state.confirmed)
        check(state.desired)
    except ConfigInvalid as exc:
        why = "the settings that were kept do not fit the settings file any more"
        # Without the mark, what is desired is looked at again, and told as it then is.
        return State(version=state.version, outcome=rolled_back(None, [why, *exc.faults]), fresh=True)
    return state


def rolled_back(version: int | None, reasons: Sequence[str]) -> Outcome:
    """Those of a version were put back, and why."""
    return Outcome(state="rolled_back", version=version, reasons=bounded(reasons))


def bounded(reasons: Sequence[str]) -> list[str]:
    """As many as fit a report."""
    told = [reason[:_REASON_LIMIT] for reason in reasons[:_REASONS]]
    return told if len(reasons) <= _REASONS else [*told, f"and {len(reasons) - _REASONS} more"]
