"""Remote settings: rules over documents, which are nested sections of values."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

SettingsValues: TypeAlias = "dict[str, Any]"
"""Section name to a nested section, or key to value."""


def over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> SettingsValues:
    """Return the values with the changes applied. A null changes nothing."""
    changed = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict):
            changed[key] = over(changed[key], change)
        elif change is not None:
            changed[key] = change
    return changed


def without_nulls(values: Mapping[str, Any]) -> SettingsValues:
    """Return the document as AWS IoT stores it."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def same_encoding(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the camera can change from one to the other without being reopened."""
    return same_range(one, other, "hd") and same_range(one, other, "sd")


def same_range(one: Mapping[str, Any], other: Mapping[str, Any], quality: str) -> bool:
    """Whether both set the same bitrate range for this quality."""
    return bool(one["camera"][quality] == other["camera"][quality])


def mark(desired: Mapping[str, Any], stamp: object) -> str:
    """Return an identifier of one request to change the settings.

    `stamp`: differs between two requests with the same values, and is equal when one request is delivered again.
    """
    return hashlib.sha256(json.dumps([desired, stamp], sort_keys=True).encode()).hexdigest()
