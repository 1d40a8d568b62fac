"""The controls of a running camera: which values it accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

ControlValues: TypeAlias = dict[str, Any]
"""Control name to value: a number, a word, a flag, or a zoom region (x, y, width and height as fractions of the field
of view). None: automatic."""


_SIDES = {"x", "y", "width", "height"}
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Offered:
    """What a camera accepts for one control: a number within bounds, or a word of a list. A flag has neither.

    `region`: the control is a region, and the bounds are those of its width and height.
    """

    lowest: float | None = None
    highest: float | None = None
    choices: tuple[str, ...] = ()
    region: bool = False
    default: Any = None

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"{self.lowest:g} to {self.highest:g}" if self.lowest is not None else "true or false"

    def accepts(self, value: Any) -> bool:  # noqa: ANN401  any JSON value
        if self.choices:
            return value in self.choices
        if self.region:
            return isinstance(value, dict) and value.keys() == _SIDES and self._accepts_region(**value)
        return self._within(value) if self.lowest is not None else isinstance(value, bool)

    def _accepts_region(self, x: Any, y: Any, width: Any, height: Any) -> bool:  # noqa: ANN401
        if not all(_is_number(side) for side in (x, y, width, height)) or x < 0 or y < 0:
            return False
        inside = x + width <= 1 + _ROUNDING and y + height <= 1 + _ROUNDING
        return inside and self._within(width) and self._within(height)

    def _within(self, value: Any) -> bool:  # noqa: ANN401
        assert self.lowest is not None
        assert self.highest is not None
        return _is_number(value) and self.lowest <= value <= self.highest


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> None:
    """Check values against what the camera accepts.

    Raises: Rejected: `bad_message`, with every fault and the accepted values.
    """
    faults = []
    for name, value in values.items():
        if name not in offered:
            faults.append(f"{name}: this camera has no such control")
        elif value is not None and not offered[name].accepts(value):
            faults.append(f"{name}: {offered[name]}")
    if faults:
        raise Rejected(Code.BAD_MESSAGE, "; ".join(faults))


def still_accepted(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> ControlValues:
    """Return those of the stored values that this camera accepts: the camera may have been exchanged."""
    return {name: value for name, value in values.items() if name in offered and offered[name].accepts(value)}


def in_force(values: Mapping[str, Any], offered: Mapping[str, Offered]) -> ControlValues:
    """Return the value of every offered control: the one that was set, or the camera's default."""
    return {name: values.get(name, offer.default) for name, offer in offered.items()}
