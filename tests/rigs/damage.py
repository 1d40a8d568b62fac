"""Damage to a state file at a random place: by a memory card, a file system, or a program with a bug."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

BYTE_KINDS = ("a bit flipped", "a block zeroed", "a random block", "truncated")
KINDS = (*BYTE_KINDS, "wrong type", "deep nesting", "huge")

_DEPTHS = (50, 500, 900, 50_000)
_HUGE = (
    '"' + "x" * 300_000 + '"',
    '"' + "x" * 100_000 + '"',
    "9" * 5000,
    "1e308",
    "-" + "9" * 300,
    "[0" + ",0" * 50_000 + "]",
)
_JSON_VALUES: tuple[Any, ...] = (None, True, -1, 0.5, "text", [], {})
_ROW_VALUES: tuple[Any, ...] = (5, 0.5, "text", b"bytes")


def damage_bytes(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Damage the bytes of any file, in one of `BYTE_KINDS`."""
    # Half of them in the header: it has the most ways to be wrong.
    at = chance.randrange(len(content) if chance.random() < 0.5 else min(len(content), 400))
    length = min(len(content) - at, chance.choice([1, 1, 16, 512, 4096]))
    match kind:
        case "a bit flipped":
            length, replacement = 1, bytes([content[at] ^ 1 << chance.randrange(8)])
        case "a block zeroed":
            replacement = bytes(length)
        case "a random block":
            replacement = chance.randbytes(length)
        case _:
            return content[:at]
    return content[:at] + replacement + content[at + length :]


def damage_json(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Damage a JSON document, in one of `KINDS`."""
    if kind in BYTE_KINDS:
        return damage_bytes(content, kind, chance)
    document = [json.loads(content)]
    parent, key = chance.choice(list(_places(document)))
    if kind == "wrong type":
        parent[key] = chance.choice([value for value in _JSON_VALUES if type(value) is not type(parent[key])])
        return json.dumps(document[0]).encode()
    if kind == "deep nesting":
        depth = chance.choice(_DEPTHS)
        text = chance.choice(("[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth))
    else:
        text = chance.choice(_HUGE)
    parent[key] = "the place"
    return json.dumps(document[0]).replace('"the place"', text).encode()


def _places(container: Any) -> Any:
    """Every value below a list or object, as the container and the key."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


def damage_database(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Damage a closed database that has one table with rows, in one of `KINDS`."""
    if kind in BYTE_KINDS:
        return damage_bytes(content, kind, chance)
    with closing(sqlite3.connect(":memory:")) as database:
        # A database in memory has no write-ahead log.
        database.deserialize(content[:18] + b"\1\1" + content[20:])
        ((name, sql),) = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        rows = [list(row) for row in database.execute(f"SELECT * FROM {name}")]
    row = chance.choice(rows)
    # An event's number is SQLite's own, and is always a number.
    column = chance.choice([column for column, value in enumerate(row) if type(value) is not int])
    match kind:
        case "wrong type":
            row[column] = chance.choice([value for value in _ROW_VALUES if type(value) is not type(row[column])])
        case "deep nesting":
            row[-1] = b"[" * 100_000
        case _:
            row[column] = chance.choice(("x" * 2_000_000, b"x" * 2_000_000, 10**18, 1e308))
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(re.sub(r" (TEXT|REAL|BLOB)\b( NOT NULL)?|STRICT,?", "", sql))
        database.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(row))})", rows)
        database.commit()
        return database.serialize()
