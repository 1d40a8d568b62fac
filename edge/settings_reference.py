"""Generates docs/settings.md: `python -m edge.settings_reference > docs/settings.md`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from edge.contract.faults import expectation
from edge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_HEAD = """# Settings

The settings are one TOML file, by default `/etc/edge-streamer/edge-streamer.toml`.
[The sample](../config/edge-streamer.toml) shows every key with its default. An environment variable overrides a key:
`EDGE__LOG__LEVEL=debug` sets `log.level`.

`sudo edge-streamer check-config FILE` checks a file on the device. It reports every fault at once, each with its key:
unknown keys, wrong values, public keys that cannot be used, a state directory that cannot be made. `edge-streamer
run` refuses the same faults with exit code 78. Certificates and keys for the broker that are missing, damaged or do not
match are warnings: the daemon runs, and its local page works, without a broker.

A secret is a file, never a value. Name it by a path, or by `credential:NAME`. That is the file NAME in
`/etc/edge-streamer/credentials`, which only root can read; systemd passes it to the daemon.

This page is generated from the model (`python -m edge.settings_reference`).
"""


def reference() -> str:
    """The page in Markdown, with a table for each section."""
    return _HEAD + "".join(_section(name, model) for name, model in sections(Settings))


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The name and model of each section; inner sections follow their outer one."""
    for name, field in model.model_fields.items():
        inner = _model_of(field)
        if inner is not None:
            yield f"{prefix}{name}", inner
            yield from sections(inner, f"{prefix}{name}.")


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section, without inner sections."""
    return {name: field for name, field in model.model_fields.items() if _model_of(field) is None}


def _section(name: str, model: type[BaseModel]) -> str:
    rows = "".join(_row(key, field) for key, field in keys(model).items())
    return f"\n## `[{name}]`\n\n| key | value | default | |\n| --- | --- | --- | --- |\n{rows}"


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    for one in (field.annotation, *get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _row(key: str, field: FieldInfo) -> str:
    value = _cell(expectation(field.rebuild_annotation(), noun="table"))
    return f"| `{key}` | {value} | {_default(field)} | {_cell(field.description or '')} |\n"


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
