"""Generates the blocks of the pages for backends from the recorded examples and the code."""

from __future__ import annotations

import json
import re
from typing import Any

from edge.contract.codes import Code, EndReason
from tests.rigs.daemon import ROOT

Json = dict[str, Any]

PAGE = ROOT / "docs" / "backend.md"
PAGES = (PAGE, ROOT / "docs" / "shadow.md")
_WIDTH = 112
_BLOCK = re.compile(
    r"(<!-- (?P<kind>examples|table): (?P<names>[\w ]+) -->)(\n```json\n.*?\n```|(\n\|[^\n]*)+)?", re.DOTALL
)


def page(text: str, examples: dict[str, Json]) -> str:
    """Regenerate the blocks of a page. A comment before each block names its contents."""

    def made(block: re.Match[str]) -> str:
        names = block["names"].split()
        if block["kind"] == "table":
            return f"{block[1]}\n{_TABLES[names[0]]()}"
        shown = "\n".join(_laid_out(examples[name]["message"]) for name in names)
        return f"{block[1]}\n```json\n{shown}\n```"

    return _BLOCK.sub(made, text)


def _laid_out(value: object, at: int = 0) -> str:
    """Format JSON with readable line breaks."""
    flat = json.dumps(value)
    if at + len(flat) <= _WIDTH or not isinstance(value, dict | list):
        return flat
    keyed = [(f'"{name}": ', each) for name, each in value.items()] if isinstance(value, dict) else None
    lines, line = [], ""
    for key, each in keyed or [("", each) for each in value]:
        part = key + _laid_out(each, at + 1 + len(key))
        if line and ("\n" in part or at + len(line) + len(part) > _WIDTH):
            lines.append(line)
            line = ""
        line += f"{', ' if line else ''}{part}"
    start, end = "{}" if keyed else "[]"
    return start + f",\n{' ' * (at + 1)}".join([*lines, line]) + end


def _codes() -> str:
    rows = [f"| `{code}` | {code.when} | {code.remedy} |" for code in Code]
    return "\n".join(["| code | when it comes | what to do |", "| --- | --- | --- |", *rows])


def _ends() -> str:
    rows = [
        f"| `{reason}` | {reason.when} | {f'`{reason.code}`' if reason.code else ''} |"
        for reason in EndReason
        if reason is not EndReason.REFUSED
    ]
    return "\n".join(["| reason | when it comes | code |", "| --- | --- | --- |", *rows])


_TABLES = {"codes": _codes, "ends": _ends}
