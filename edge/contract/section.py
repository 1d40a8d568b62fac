"""The base of settings: pydantic models whose rules across fields are checked together with the fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic_core import ErrorDetails

Rule: TypeAlias = "Callable[[Any], tuple[str, str] | None]"
"""Takes the section; returns the key and the fault. The key is empty where the whole section is at fault."""


class Section(BaseModel):
    """A section of the settings.

    pydantic runs a model's validators only when all its fields are valid, and reports only one of their faults. So
    `rules` holds the rules across fields: each one runs whenever the fields that it reads are valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _check_rules(cls, fields: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        faults: list[InitErrorDetails] = []
        valid: Self | _ValidFields
        try:
            section = valid = handler(fields)
        except ValidationError as exc:
            if not isinstance(fields, dict):
                raise
            section, errors = None, exc.errors(include_url=False)
            faults += [_again(error) for error in errors]
            valid = _ValidFields(cls, fields, [error["loc"] for error in errors])
        for rule in cls.rules:
            try:
                fault = rule(valid)
            except _NotValidError:
                continue
            if fault is not None:
                key, said = fault
                location = tuple(key.split(".")) if key else ()
                faults.append({"type": _custom("rule", said), "loc": location, "input": None})
        if faults or section is None:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return section


class _NotValidError(Exception):
    """A rule read a field that is not valid."""


class _ValidFields:
    """The valid fields of a section that has faults, also within its sections. Another one raises _NotValidError."""

    def __init__(self, model: type[BaseModel], fields: dict[str, Any], faulty: Sequence[tuple[int | str, ...]]) -> None:
        self._model = model
        self._fields = fields
        self._faulty = faulty

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  a field's value
        field = self._model.model_fields.get(name)
        if field is None:
            attribute = getattr(self._model, name)
            return attribute.fget(self) if isinstance(attribute, property) and attribute.fget else attribute
        inner = [location[1:] for location in self._faulty if location[:1] == (name,)]
        if name not in self._fields:
            if field.is_required():
                raise _NotValidError
            return field.get_default(call_default_factory=True)
        value, kind = self._fields[name], field.annotation
        if not inner:
            return TypeAdapter(field.rebuild_annotation()).validate_python(value)
        if all(inner) and isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            return _ValidFields(kind, value, inner)
        raise _NotValidError


def _again(error: ErrorDetails) -> InitErrorDetails:
    """An error of a field, to be raised again. pydantic makes only its own types; this takes any."""
    return {"type": _custom(error["type"], error["msg"]), "loc": error["loc"], "input": error["input"]}


def _custom(kind: str, said: str) -> PydanticCustomError:
    return PydanticCustomError(kind, "{said}", {"said": said})
