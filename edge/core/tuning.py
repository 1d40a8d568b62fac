"""Settings that are changed from afar: rules over documents, sections of sections of values."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Values: TypeAlias = "dict[str, Any]"
"""Sections by name, each a dict like this one or a value."""


def over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """Values with these in place of their own; null changes nothing."""
    changed = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict):
            changed[key] = over(changed[key], change)
        elif change is not None:
            changed[key] = change
    return changed


def without_nulls(values: Mapping[str, Any]) -> Values:
    """As AWS IoT keeps them."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def same_encoding(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the camera need not be opened again to go from one to the other."""
    return same_range(one, other, "hd") and same_range(one, other, "sd")


def same_range(one: Mapping[str, Any], other: Mapping[str, Any], quality: str) -> bool:
    """Whether this quality's encoder may aim at the same."""
    return bool(one["camera"][quality] == other["camera"][quality])


def mark(desired: Mapping[str, Any], stamp: object) -> str:
    """What tells one desired document from another, and the same one from itself when it comes again.

    `stamp`: what differs where the same is desired anew.
    """
    return hashlib.sha256(json.dumps([desired, stamp], sort_keys=True).encode()).hexdigest()
