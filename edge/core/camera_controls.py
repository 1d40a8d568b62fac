"""What of a camera can be set while it runs, and what it takes: a rule over names and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

Values: TypeAlias = "dict[str, Any]"
"""Control name to value: a number, a word, a flag, or a zoom region (x, y, width, height, in fractions of the field).
None: what the camera does by itself."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What a camera takes for one control: numbers within bounds, or words; a flag has neither.

    For `zoom` the bounds are those of the region's width and height.
    """

    lowest: float | None = None
    highest: float | None = None
    choices: tuple[str, ...] = ()
    default: Any = None

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"{self.lowest:g} to {self.highest:g}" if self.lowest is not None else "true or false"

    def takes(self, value: Any) -> bool:  # noqa: ANN401  whatever a message holds
        if self.choices:
            return value in self.choices
        if isinstance(value, dict):
            return all(self._within(value[side]) for side in ("width", "height"))
        if self.lowest is None:
            return isinstance(value, bool)
        return not isinstance(value, bool) and isinstance(value, int | float) and self._within(value)

    def _within(self, value: float) -> bool:
        return self.lowest is not None and self.highest is not None and self.lowest <= value <= self.highest


def check(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> None:
    """Hold values against what the camera takes.

    Raises: Rejected: `bad_message`, with every fault and what would be taken instead.
    """
    faults = []
    for name, value in values.items():
        if name not in offered:
            faults.append(f"{name}: this camera has no such control")
        elif value is not None and not offered[name].takes(value):
            faults.append(f"{name}: {offered[name]}")
    if faults:
        raise Rejected(Code.BAD_MESSAGE, "; ".join(faults))


def still_taken(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> Values:
    """The values that this camera takes, of those that were set before: it may be another camera now."""
    return {name: value for name, value in values.items() if name in offered and offered[name].takes(value)}


def in_force(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> Values:
    """Every control's value: what was set, or the camera's default."""
    return {name: values.get(name, offer.default) for name, offer in offered.items()}
