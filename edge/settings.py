"""The one model of the one TOML file."""

from __future__ import annotations

import copy
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from edge.camera.settings import CameraSettings
from edge.contract.shadow import Desired
from edge.contract.topics import DEVICE_ID
from edge.core.annexb import level_for
from edge.core.tuning import over
from edge.errors import ConfigInvalid
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


class _Slice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DeviceSettings(_Slice):
    """Who this device is."""

    id: Annotated[str, StringConstraints(pattern=DEVICE_ID)] = Field(
        description="Device id, MQTT client id and AWS thing name in one: letters, digits, - and _.",
    )


class AuthSettings(_Slice):
    """Who may ask for what, and how often."""

    mode: Literal["required", "off"] = Field(
        default="required",
        description="off: every client that may publish on the command topic may watch; only the broker's rules count.",
    )
    jwks_file: Path | None = Field(default=None, description="The backend's public keys. Read again when it changes.")
    trust_clock: bool = Field(
        default=False,
        description="True: the clock counts as set, where the system cannot tell (GPS, PTP, a virtual machine's host).",
    )
    commands_per_s: float = Field(
        default=50, gt=0, le=1000, description="Commands that one reply client may send; four times as many at once."
    )
    commands_in_all_per_s: float = Field(
        default=100, gt=0, le=1000, description="Commands that all reply clients together may send."
    )

    @field_validator("jwks_file")
    @classmethod
    def _goes_with_required(cls, jwks_file: Path | None, info: ValidationInfo) -> Path | None:
        if jwks_file is None and info.data.get("mode") == "required":
            raise ValueError('a file with the public keys of the backend is needed, unless mode = "off"')
        return jwks_file


class StateSettings(_Slice):
    """What has to survive a restart."""

    dir: Path = Field(
        default=Path("/var/lib/edge-streamer"),
        description="Directory for what survives a restart. The daemon must be able to write to it.",
    )


class LogSettings(_Slice):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Messages below this level are not logged."
    )


class _Environment(EnvSettingsSource):
    """A list or a section that is no JSON stays text: the model then tells it with its key, like any other fault."""

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
    # Validated even where the file says nothing of it: its default needs a file.
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
    try:
        with path.open("rb") as file:
            fields = tomllib.load(file)
    except OSError as exc:
        raise ConfigInvalid([f"{path}: {exc.strerror}"]) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigInvalid([f"{path}: not TOML: {exc}"]) from exc
    # Looked at here: the framework takes keys that begin with _ for options of its own, and skips such variables.
    known = Settings.model_fields
    unknown = [f"{key}: unknown key" for key in fields if key not in known]
    unknown += [f"{name}: unknown key" for name in os.environ if _is_unknown_variable(name)]
    try:
        settings = Settings(**{key: value for key, value in fields.items() if key in known})
    except ValidationError as exc:
        raise ConfigInvalid([*unknown, *map(_told, _faults(exc))]) from None
    if unknown:
        raise ConfigInvalid(unknown)
    return settings


def absent_files(settings: Settings) -> list[str]:
    """The files that the daemon will look for and that cannot be seen here; it may be another machine than its own."""
    mqtt, claim = settings.mqtt, settings.mqtt.claim
    files = {"mqtt.ca_file": mqtt.ca_file, "mqtt.password_file": mqtt.password_file}
    if claim is None:
        files |= {"mqtt.cert_file": mqtt.cert_file, "mqtt.key_file": mqtt.key_file}
    else:
        files |= {"mqtt.claim.cert_file": claim.cert_file, "mqtt.claim.key_file": claim.key_file}
    if settings.auth.mode == "required":
        files["auth.jwks_file"] = settings.auth.jwks_file
    if settings.camera.source == "file":
        files["camera.path"] = settings.camera.path
    faults = []
    for key, path in files.items():
        try:
            if path is not None:
                path.stat()
        except OSError as exc:
            faults.append(f"{key}: {path}: {exc.strerror}")
    return faults


def _is_unknown_variable(name: str) -> bool:
    prefix, section = name[: len(_ENV_PREFIX)], name[len(_ENV_PREFIX) :].partition("__")[0]
    return prefix.upper() == _ENV_PREFIX and section.lower() not in Settings.model_fields


def tunable(settings: Settings) -> dict[str, Any]:
    """What of the settings a backend may change, with its value, by sections."""
    return Desired.model_validate(settings.model_dump(mode="json"), extra="ignore").model_dump()


def tuned(settings: Settings, desired: Mapping[str, Any]) -> Settings:
    """The settings with what is desired in place of their own, checked as a whole.

    Raises: ConfigInvalid: every fault at once, each with its key path; no fault repeats a value.
    """
    faults: list[ErrorDetails] = []
    rest: dict[str, Any] = copy.deepcopy(dict(desired))
    try:
        Desired.model_validate(rest)
    except ValidationError as exc:
        faults += _faults(exc)
        for fault in faults:
            _drop(rest, fault["loc"])
    try:
        changed = _Tuned(**over(settings.model_dump(), rest))
    except ValidationError as exc:
        faults += _faults(exc)
    if faults:
        raise ConfigInvalid([_told(fault) for fault in faults])
    for quality, before, after in (
        ("hd", settings.camera.hd, changed.camera.hd),
        ("sd", settings.camera.sd, changed.camera.sd),
    ):
        if level_for(*after.stream) > level_for(*before.stream):
            said = "needs a higher H.264 level than the settings file's, which those who watch may not decode"
            raise ConfigInvalid([f"camera.{quality}.max_bps: {said}"])
    return changed


class _Tuned(Settings):
    """Settings out of settings: what the environment said is in them already."""

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
    *sections, key = location
    for section in sections:
        fields = fields[str(section)]
    fields.pop(str(key), None)


def _faults(exc: ValidationError) -> list[ErrorDetails]:
    return exc.errors(include_url=False, include_input=False, include_context=False)


def _told(fault: ErrorDetails) -> str:
    said = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
    # A key from afar may hold what cannot be shown, or sent.
    return f"{'.'.join(ascii(key)[1:-1] if isinstance(key, str) else str(key) for key in fault['loc'])}: {said}"
