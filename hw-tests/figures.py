"""Measured figures and their bounds: one row each, in the table and in the JSON report."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NOT_BOUNDED = "-"
_LARGE = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its bounds, if any. `value` None: this machine cannot measure it."""

    name: str
    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is within its bounds. A missing value is."""
        if self.value is None:
            return True
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def bound(self) -> str:
        limits = [
            f"{sign} {limit:g}" for sign, limit in (("<=", self.at_most), (">=", self.at_least)) if limit is not None
        ]
        return " ".join(limits) or _NOT_BOUNDED

    def __str__(self) -> str:
        value = "null" if self.value is None else _short(self.value)
        verdict = "" if self.bound == _NOT_BOUNDED else "ok" if self.holds else "FAILED"
        return f"{self.name:34}{value:>10} {self.unit:10}{self.bound:>20}  {verdict}".rstrip()


class Report:
    """All figures of a run, and the system that they were measured on."""

    def __init__(self, **about: str | bool | None) -> None:
        self.about: dict[str, str | bool | None] = about
        self.figures: list[Figure] = []

    def check(self, *figures: Figure) -> None:
        """Add the figures, then fail if one is out of its bounds."""
        self.figures += figures
        failed = [str(figure) for figure in figures if not figure.holds]
        assert not failed, "out of bounds:\n" + "\n".join(failed)

    def lines(self) -> list[str]:
        about = [f"{name}: {'unknown' if value is None else value}" for name, value in self.about.items()]
        return [*about, "", *map(str, self.figures)]

    def write(self, file: Path, *, passed: bool, failures: Sequence[str]) -> None:
        """Write the report as JSON. `failures`: all failed tests, including those without a figure."""
        rows = {
            figure.name: {
                "value": None if figure.value is None else round(figure.value, 3),
                "unit": figure.unit,
                "at_most": figure.at_most,
                "at_least": figure.at_least,
                "holds": figure.holds,
            }
            for figure in self.figures
        }
        fields = {
            "passed": passed,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "about": self.about,
            "figures": rows,
            "failures": list(failures),
        }
        file.write_text(json.dumps(fields, indent=2) + "\n")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= _LARGE else f"{value:.2f}"


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[18]
