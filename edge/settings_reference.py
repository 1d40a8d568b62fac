"""Prints the settings' reference: `python -m edge.settings_reference > docs/settings.md`."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from edge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_HEAD = """# Settings

One TOML file, by default `/etc/edge-streamer/edge-streamer.toml`. [The sample](../config/edge-streamer.toml) has every
key with its default. `edge-streamer check-config FILE` reports all faults at once, each with its key. Unknown keys are
faults.

An environment variable overrides a key: `EDGE__LOG__LEVEL=debug` sets `log.level`.

A secret is a file, never a value. Name it by a path, or by `credential:NAME`: that is the file NAME in
`/etc/edge-streamer/credentials`, which only root can read and which systemd hands to the daemon.

This page is generated from the model (`python -m edge.settings_reference`).
"""
_WORDS = {str: "string", int: "integer", float: "number", bool: "true or false", Path: "path"}
_BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
}
_LENGTHS = {"max_length": "at most {} long", "pattern": "matches `{}`"}


def reference() -> str:
    """The page, in Markdown: a table for each section."""
    return _HEAD + "".join(_section(name, model) for name, model in sections(Settings))


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section's name and model, those within a section after it."""
    for name, field in model.model_fields.items():
        inner = _model_of(field)
        if inner is not None:
            yield f"{prefix}{name}", inner
            yield from sections(inner, f"{prefix}{name}.")


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's own keys."""
    return {name: field for name, field in model.model_fields.items() if _model_of(field) is None}


def _section(name: str, model: type[BaseModel]) -> str:
    rows = "".join(
        f"| `{key}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |\n"
        for key, field in keys(model).items()
    )
    return f"\n## `[{name}]`\n\n| key | value | default | |\n| --- | --- | --- | --- |\n{rows}"


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    for one in (field.annotation, *get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _type(field: FieldInfo) -> str:
    words = _words(field.annotation)
    bounds = [
        form.format(getattr(constraint, name))
        for constraint in _constraints(field)
        for name, form in {**_BOUNDS, **_LENGTHS}.items()
        if getattr(constraint, name, None) is not None
    ]
    return _cell(", ".join([words, *bounds]))


def _constraints(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    if get_origin(field.annotation) in (Union, types.UnionType):
        for inner in get_args(field.annotation):
            yield from get_args(inner)[1:] if get_origin(inner) is Annotated else ()


def _words(annotation: Any) -> str:  # noqa: ANN401  any annotation
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inner if one is not type(None))
    if origin in (list, tuple):
        return f"list of {_words(inner[0])}s"
    if origin is dict:
        return "table of strings"
    return _WORDS.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    return f"`{json.dumps(default, default=str)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
