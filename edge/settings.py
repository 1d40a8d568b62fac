"""The one model of the one TOML file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from edge.camera.settings import CameraSettings
from edge.contract.topics import DEVICE_ID
from edge.errors import ConfigInvalid
from edge.local_api.settings import ApiSettings
from edge.sessions.settings import SessionSettings
from edge.signalling.settings import MqttSettings  # noqa: TC001  pydantic reads the annotations at run time
from edge.streaming.settings import IceSettings, RtpSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
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
        description="off: whoever may publish on the command topic may watch; the broker's rules are the only ones.",
    )
    jwks_file: Path | None = Field(default=None, description="The backend's public keys. Read again when it changes.")
    trust_clock: bool = Field(
        default=False,
        description="True: the clock counts as set, where the system cannot tell (GPS, PTP, a virtual machine's host).",
    )
    commands_per_s: float = Field(
        default=50, gt=0, le=1000, description="Of each reply client; four times as many at once."
    )
    commands_in_all_per_s: float = Field(default=100, gt=0, le=1000)

    @field_validator("jwks_file")
    @classmethod
    def _goes_with_required(cls, jwks_file: Path | None, info: ValidationInfo) -> Path | None:
        if jwks_file is None and info.data.get("mode") == "required":
            raise ValueError('a file with the public keys of the backend is needed, unless mode = "off"')
        return jwks_file


class StateSettings(_Slice):
    """What has to survive a restart."""

    dir: Path = Field(default=Path("/var/lib/edge-streamer"), description="A directory that the daemon may write to.")


class LogSettings(_Slice):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"


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
        faults = exc.errors(include_url=False, include_input=False, include_context=False)
        told = [_fault(fault["loc"], fault["type"], fault["msg"]) for fault in faults]
        raise ConfigInvalid([*unknown, *told]) from None
    if unknown:
        raise ConfigInvalid(unknown)
    return settings


def _is_unknown_variable(name: str) -> bool:
    prefix, section = name[: len(_ENV_PREFIX)], name[len(_ENV_PREFIX) :].partition("__")[0]
    return prefix.upper() == _ENV_PREFIX and section.lower() not in Settings.model_fields


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    said = "unknown key" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {said}"
