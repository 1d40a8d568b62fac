"""Everything that keeps the daemon from starting: faults of the settings, and of the files that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import ConfigInvalid
from edge.host.state_directory import write_fault
from edge.host.systemd import missing_package
from edge.mqtt.factory import missing_client
from edge.mqtt.files import FileCheck
from edge.mqtt.settings import MqttSettings
from edge.settings import AuthSettings, StateSettings, read_settings
from edge.signalling.tokens import TokenKeys

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from edge.settings import Settings


def check(path: Path) -> tuple[Settings, list[str]]:
    """Read settings that the daemon can start with. Returns the settings, and warnings about what may not work.

    `run` and `check-config` both call this, so that they refuse the same settings. Blocking.
    Raises: ConfigInvalid: every fault at once, each with its key path.
    """
    settings, sections, faults = read_settings(path)
    more, warnings = _machine(sections)
    faults += more
    if faults or settings is None:
        raise ConfigInvalid(faults)
    camera = settings.camera
    if camera.source == "file" and camera.path is not None and not camera.path.is_file():
        warnings.append(f"camera.path: {camera.path}: no such file")
    return settings, warnings


def _machine(sections: dict[str, BaseModel]) -> tuple[list[str], list[str]]:
    """Faults and warnings of what the valid sections name."""
    faults: list[str] = []
    warnings: list[str] = []
    if isinstance(mqtt := sections.get("mqtt"), MqttSettings):
        files = FileCheck(mqtt)
        warnings += files.warnings
        faults += [*files.faults, *_present(missing_client(mqtt))]
        if files.new_directory is not None:
            faults += _present(write_fault(files.new_directory), "mqtt.key_file: {}")
    if isinstance(auth := sections.get("auth"), AuthSettings) and auth.mode == "required" and auth.jwks_file:
        key_faults, key_warnings = _keys(auth.jwks_file)
        faults += key_faults
        warnings += key_warnings
    if isinstance(state := sections.get("state"), StateSettings):
        faults += _present(write_fault(state.dir), "state.dir: {}")
    faults += _present(missing_package())
    return faults, warnings


def _keys(jwks_file: Path) -> tuple[list[str], list[str]]:
    """Faults and warnings. An empty list of keys is valid: it locks out every token."""
    try:
        keys = TokenKeys(jwks_file)
    except ConfigInvalid as exc:
        return list(exc.faults), []
    return [], [
        f"auth.jwks_file: {jwks_file}: it contains no key, so that every token is refused"
    ] if keys.empty else []


def _present(fault: str | None, form: str = "{}") -> list[str]:
    return [] if fault is None else [form.format(fault)]
