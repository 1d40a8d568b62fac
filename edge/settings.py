"""The model of the settings file."""

from __future__ import annotations

import contextlib
import copy
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from edge.camera.settings import CameraSettings
from edge.contract.faults import plain_faults, shown, suggestion
from edge.contract.section import Rule, Section
from edge.contract.shadow import Desired
from edge.contract.topics import DEVICE_ID
from edge.core.annexb import level_for
from edge.core.tuning import over
from edge.errors import ConfigInvalid
from edge.files import read_file
from edge.local_api.settings import ApiSettings
from edge.mqtt.settings import MqttSettings  # noqa: TC001  pydantic reads the annotations at run time
from edge.sessions.settings import SessionSettings
from edge.streaming.settings import IceSettings, RtpSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails
    from pydantic_settings import PydanticBaseSettingsSource


_ENV_PREFIX = "EDGE__"
_KEYS_THAT_CHANGE_THE_REST = {"", "mode", "claim", "dir"}
"""Without these keys a section means something else: no files that it names should be checked."""


class DeviceSettings(Section):
    """`[device]`: the identity of this device."""

    id: Annotated[str, StringConstraints(pattern=DEVICE_ID)] = Field(
        description="Device id, MQTT client id and AWS thing name: letters, digits, - and _.",
    )


def _required_has_keys(auth: AuthSettings) -> tuple[str, str] | None:
    if auth.mode == "required" and auth.jwks_file is None:
        return "jwks_file", 'missing: the file with the backend\'s public keys; only mode = "off" needs none'
    return None


class AuthSettings(Section):
    """`[auth]`: tokens, and limits of commands."""

    rules: ClassVar[tuple[Rule, ...]] = (_required_has_keys,)

    mode: Literal["required", "off"] = Field(
        default="required",
        description="required: a command needs a token. off: every client that may publish on the command topic may "
        "watch; only the broker's rules protect the camera.",
    )
    jwks_file: Path | None = Field(
        default=None, description="File with the backend's public keys (JWKS). It is read again when it changes."
    )
    trust_clock: bool = Field(
        default=False,
        description="Set to true if something sets the clock that the system does not know of: GPS, PTP, a virtual "
        "machine's host.",
    )
    commands_per_s: float = Field(
        default=50,
        gt=0,
        le=1000,
        description="Command rate of each viewer (a token's sub; with mode off, each reply client), and once more for "
        "commands about its sessions. A burst may be four times as large.",
    )
    commands_in_all_per_s: float = Field(
        default=100,
        gt=0,
        le=1000,
        description="Command rate of all together. A quarter is reserved for those that were not heard for a minute.",
    )


class StateSettings(Section):
    """`[state]`."""

    dir: Path = Field(
        default=Path("/var/lib/edge-streamer"),
        description="Directory for data that survives a restart. The daemon must be able to write to it.",
    )


class LogSettings(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )


class _Environment(EnvSettingsSource):
    """Passes a value that is not JSON on as text, so that the model reports it like any other fault."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """All settings. Environment variables `EDGE__SECTION__KEY` override the file's."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    device: DeviceSettings
    mqtt: MqttSettings
    # Validated even where the file has no such section: the default lacks jwks_file.
    auth: AuthSettings = Field(default_factory=dict, validate_default=True)
    camera: CameraSettings = CameraSettings()
    sessions: SessionSettings = SessionSettings()
    ice: IceSettings = IceSettings()
    rtp: RtpSettings = RtpSettings()
    api: ApiSettings = ApiSettings()
    state: StateSettings = StateSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the framework's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment = _Environment(settings_cls, env_prefix=_ENV_PREFIX, env_nested_delimiter="__")
        return environment, init_settings


def load_settings(path: Path) -> Settings:
    """Read the file and the environment.

    Raises: ConfigInvalid: every fault at once, each with its key path; no fault repeats a value.
    """
    settings, _, faults = read_settings(path)
    if faults or settings is None:
        raise ConfigInvalid(faults)
    return settings


def read_settings(path: Path) -> tuple[Settings | None, dict[str, BaseModel], list[str]]:
    """Read the file and the environment. Returns the settings, the usable sections by name, and all faults.

    The settings are None if a section is faulty; without its faulty keys it may still be usable.
    Raises: ConfigInvalid: the file cannot be read, or is not TOML.
    """
    try:
        fields = tomllib.loads(read_file(path).decode())
    except OSError as exc:
        raise ConfigInvalid([f"{path}: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise ConfigInvalid([f"{path}: not TOML: the byte at position {exc.start} is not UTF-8"]) from exc
    except RecursionError as exc:
        raise ConfigInvalid([f"{path}: not TOML: nested too deeply"]) from exc
    except ValueError as exc:  # TOMLDecodeError, or an integer with thousands of digits
        raise ConfigInvalid([f"{path}: not TOML: {exc}"]) from exc
    if nul := _keys_with_nul(fields):
        raise ConfigInvalid([f"{key}: contains a NUL character" for key in nul])
    # pydantic-settings takes keys that begin with _ for its own options, and ignores unknown variables.
    known = Settings.model_fields
    faults = [f"{shown(key)}: unknown key{suggestion(key, known)}" for key in fields if key not in known]
    faults += [f"{name}: unknown key{_suggested_variable(name)}" for name in os.environ if _is_unknown_variable(name)]
    try:
        settings = Settings(**{key: value for key, value in fields.items() if key in known})
    except ValidationError as exc:
        errors = exc.errors()
        return None, _valid_sections(fields, errors), [*faults, *plain_faults(errors, Settings, noun="table")]
    return settings, {name: getattr(settings, name) for name in known}, faults


def _keys_with_nul(fields: Mapping[str, Any], at: str = "") -> list[str]:
    """The paths of the texts that no file name and no line can contain."""
    found = [f"{at}{shown(key)}" for key, value in fields.items() if isinstance(value, str) and "\0" in value]
    for key, value in fields.items():
        if isinstance(value, dict):
            found += _keys_with_nul(value, f"{at}{shown(key)}.")
    return found


def _valid_sections(fields: Mapping[str, Any], errors: list[ErrorDetails]) -> dict[str, BaseModel]:
    """The sections that are valid without their faulty keys, and that no environment variable changes."""
    changed = {name[len(_ENV_PREFIX) :].partition("__")[0].lower() for name in os.environ if _is_variable(name)}
    faulty: dict[int | str, set[int | str]] = {}
    for error in errors:
        section, key, *_ = *error["loc"], ""
        faulty.setdefault(section, set()).add(key)
    sections: dict[str, BaseModel] = {}
    for name, field in Settings.model_fields.items():
        keys = faulty.get(name, set())
        if name in changed or keys & _KEYS_THAT_CHANGE_THE_REST:
            continue
        given = {key: value for key, value in fields.get(name, {}).items() if key not in keys}
        with contextlib.suppress(ValidationError):
            sections[name] = TypeAdapter[BaseModel](field.rebuild_annotation()).validate_python(given)
    return sections


def _is_variable(name: str) -> bool:
    return name[: len(_ENV_PREFIX)].upper() == _ENV_PREFIX


def _is_unknown_variable(name: str) -> bool:
    section = name[len(_ENV_PREFIX) :].partition("__")[0]
    return _is_variable(name) and section.lower() not in Settings.model_fields


def _suggested_variable(name: str) -> str:
    return suggestion(name.upper(), [f"{_ENV_PREFIX}{section.upper()}" for section in Settings.model_fields])


def tunable(settings: Settings) -> dict[str, Any]:
    """The settings that a backend may change, with their values, by section."""
    return Desired.model_validate(settings.model_dump(mode="json"), extra="ignore").model_dump()


def tuned(settings: Settings, desired: Mapping[str, Any]) -> Settings:
    """The settings with the desired values in place of their own, checked as a whole.

    Raises: ConfigInvalid: every fault at once, each with its key path; no fault repeats a value.
    """
    faults: list[str] = []
    rest: dict[str, Any] = copy.deepcopy(dict(desired))
    try:
        Desired.model_validate(rest)
    except ValidationError as exc:
        errors = exc.errors()
        faults += plain_faults(errors, Desired)
        for error in errors:
            _drop(rest, error["loc"])
    try:
        changed = _Tuned(**over(settings.model_dump(), rest))
    except ValidationError as exc:
        faults += plain_faults(exc.errors(), Settings)
    if faults:
        raise ConfigInvalid(faults)
    for quality, before, after in (
        ("hd", settings.camera.hd, changed.camera.hd),
        ("sd", settings.camera.sd, changed.camera.sd),
    ):
        if level_for(*after.stream) > level_for(*before.stream):
            said = "needs a higher H.264 level than the settings file's, which viewers may not decode"
            raise ConfigInvalid([f"camera.{quality}.max_bps: {said}"])
    return changed


class _Tuned(Settings):
    """Settings made from settings, which include the environment already."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the framework's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _drop(fields: dict[str, Any], location: tuple[int | str, ...]) -> None:
    if not location:  # the document as a whole
        fields.clear()
        return
    *sections, key = location
    for section in sections:
        fields = fields[str(section)]
    fields.pop(str(key), None)
