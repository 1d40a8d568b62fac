"""Faults of a document in plain sentences: the one place that translates pydantic's errors."""

from __future__ import annotations

import difflib
import enum
import json
import re
import types
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, SecretStr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

Location: TypeAlias = "tuple[int | str, ...]"

_KEY_LIMIT = 64
_KEYS_COMPARED = 32  # a comparison costs time, and the sender chooses the number of keys
_SIMPLE_TYPES = (
    (bool, "true or false"),
    ((datetime, AwareDatetime), "a date and time with a time zone, such as 2026-01-31T12:00:00Z"),
    (Path, "a path"),
)
_FIXED = {"json_invalid": "not JSON", "string_unicode": "text that is valid Unicode"}
_CHARACTERS = re.compile(r"\^\[A-Za-z0-9_-\]\{1,(\d+)\}\$")


def plain_faults(
    errors: Iterable[ErrorDetails | Mapping[str, Any]],
    expected: Any,  # noqa: ANN401  any annotation
    *,
    at: Location = (),
    noun: str = "object",
) -> list[str]:
    """One sentence for each faulty key, with its path; no sentence repeats a value.

    `expected`: the type or model of the document. `at`: where the document is in a larger one. `noun`: what the format
    calls a mapping. The order is pydantic's.
    """
    faults: dict[str, None] = {}
    for error in errors:
        # The location of invalid JSON is a position in its text.
        location = () if error["type"] == "json_invalid" else error["loc"]
        names, found, model = _follow(expected, location)
        path = ".".join(shown(name) for name in (*at, *names))
        fault = _sentence(error, found, model, noun)
        faults[f"{path}: {fault}" if path else fault] = None
    return list(faults)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for a misspelt name; empty where nothing is close."""
    close = difflib.get_close_matches(name[:_KEY_LIMIT], sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def shown(key: object) -> str:
    """A key as it can be shown and sent: a remote key may have any length and any characters."""
    text = str(key)
    return ascii(text[:_KEY_LIMIT])[1:-1] + ("..." if len(text) > _KEY_LIMIT else "")


def expectation(annotation: Any, constraints: Sequence[Any] = (), noun: str = "object") -> str:  # noqa: ANN401
    """What a value must be, such as "a whole number from 1 to 60"."""
    inner, found = _plain_type(annotation)
    constraints = [*constraints, *found]
    options = _options(inner)
    if len(options) == 1 and options[0] is not inner:
        return expectation(options[0], constraints, noun)
    if len(options) > 1:
        return " or ".join(dict.fromkeys(expectation(option, constraints, noun) for option in options))
    bounds = _bounds(constraints)
    if isinstance(inner, type):
        return _of_class(inner, bounds, noun)
    return _of_generic(get_origin(inner), get_args(inner), bounds, noun)


def _of_generic(origin: object, arguments: Sequence[Any], bounds: Mapping[str, Any], noun: str) -> str:
    limit = f" of at most {bounds['max_length']} entries" if "max_length" in bounds else ""
    if origin is Literal:
        return _choice(arguments)
    if origin is list:
        return f"a list{limit}, each {expectation(arguments[0], noun=noun)}"
    return f"{_article(noun)} {noun}{limit}" if origin is dict else "another value"


def _of_class(kind: type, bounds: Mapping[str, Any], noun: str) -> str:
    if (words := next((words for simple, words in _SIMPLE_TYPES if issubclass(kind, simple)), None)) is not None:
        return words
    if issubclass(kind, enum.Enum):
        return _choice([member.value for member in kind])
    if issubclass(kind, int | float):
        return ("a whole number" if issubclass(kind, int) else "a number") + _number_range(bounds)
    if issubclass(kind, str | SecretStr):
        return "text" + _text_range(bounds)
    fields = kind.model_fields if issubclass(kind, BaseModel) else {}
    needed = [name for name, field in fields.items() if field.is_required()]
    return f"{_article(noun)} {noun}" + (f" with {_listed(needed)}" if needed else "")


def _sentence(error: ErrorDetails | Mapping[str, Any], found: Any, model: type[BaseModel] | None, noun: str) -> str:  # noqa: ANN401
    kind, key = error["type"], str(error["loc"][-1]) if error["loc"] else ""
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "extra_forbidden":
        return f"unknown key{suggestion(key, model.model_fields if model else ())}"
    if kind in ("value_error", "assertion_error", "rule"):
        # The sentence of a validator of this project, after pydantic's own words.
        return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    expected = "" if found is None else expectation(found, noun=noun)
    if kind != "missing":
        return expected or "not a valid value"
    return "missing" + (f" ({expected})" if expected else "") + _misspelt(key, error.get("input"), model)


def _misspelt(name: str, given: object, model: type[BaseModel] | None) -> str:
    """A key of the document that is close to a missing one. Where unknown keys are faults, that fault says it."""
    if model is None or model.model_config.get("extra") == "forbid" or not isinstance(given, dict):
        return ""
    unknown = [
        key for key in given if isinstance(key, str) and key not in model.model_fields and len(key) <= _KEY_LIMIT
    ]
    close = difflib.get_close_matches(name, unknown[:_KEYS_COMPARED], n=1)
    return f"; {shown(close[0])} is not a known key: did you mean {name}?" if close else ""


def _follow(annotation: Any, location: Location) -> tuple[list[int | str], Any, type[BaseModel] | None]:  # noqa: ANN401
    """The path of a fault, what is expected there, and the model around it.

    pydantic's location also names the branch of a union that it tried; a path in the document has no such entry.
    """
    names: list[int | str] = []
    model: type[BaseModel] | None = None
    for entry in location:
        options = _options(_plain_type(annotation)[0])
        if len(options) > 1 or entry == "[key]":
            break
        kind = _plain_type(options[0])[0]
        names.append(entry)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
            fields = kind.model_fields.items()
            annotation = next(
                (field.rebuild_annotation() for name, field in fields if entry in (name, field.alias)), None
            )
        else:
            arguments = get_args(kind)
            annotation = arguments[-1] if arguments and get_origin(kind) is not Literal else None
    return names, annotation, model


def _plain_type(annotation: Any) -> tuple[Any, list[Any]]:  # noqa: ANN401
    """The type inside `Annotated`, and its constraints."""
    constraints: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *found = get_args(annotation)
        constraints += found
    return annotation, constraints


def _options(annotation: Any) -> list[Any]:  # noqa: ANN401
    """The members of a union without None; of another type, itself."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    return [member for member in get_args(annotation) if member is not type(None)]


def _bounds(constraints: Iterable[Any]) -> dict[str, Any]:
    """Bounds by their names in pydantic, out of `Field(...)`, `StringConstraints` and annotated_types."""
    found: dict[str, Any] = {}
    for constraint in constraints:
        for each in (constraint, *getattr(constraint, "metadata", ())):
            for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern"):
                if (value := getattr(each, name, None)) is not None:
                    found[name] = value
    return found


def _number_range(bounds: Mapping[str, Any]) -> str:
    if "ge" in bounds and "le" in bounds:
        words = [f"from {bounds['ge']} to {bounds['le']}"]
    else:
        forms = {"ge": "at least {}", "gt": "greater than {}", "le": "at most {}", "lt": "less than {}"}
        words = [form.format(bounds[name]) for name, form in forms.items() if name in bounds]
    if "multiple_of" in bounds:
        words.append(f"a multiple of {bounds['multiple_of']}")
    return " " + " and ".join(words) if words else ""


def _text_range(bounds: Mapping[str, Any]) -> str:
    if "pattern" in bounds:
        simple = _CHARACTERS.fullmatch(bounds["pattern"])
        return f" of 1 to {simple[1]} letters, digits, - and _" if simple else f" that matches {bounds['pattern']}"
    least, most = bounds.get("min_length"), bounds.get("max_length")
    if most is not None:
        return f" of {least or 0} to {most} characters" if least else f" of at most {most} characters"
    return f" of at least {least} character{'s' if least != 1 else ''}" if least else ""


def _choice(values: Sequence[Any]) -> str:
    return ("must be " if len(values) == 1 else "") + _listed([json.dumps(value) for value in values], "or")


def _listed(names: Sequence[str], conjunction: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
