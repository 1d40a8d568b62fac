"""The sample settings load, and they show every setting with its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from edge.mqtt.settings import MqttSettings
from edge.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "config" / "edge-streamer.toml"


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.toml")), ids=lambda path: path.name)
def test_every_sample_loads(path: Path) -> None:
    load_settings(path)


def uncommented() -> dict[str, Any]:
    text = re.sub(r"^# (\w+ = )", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)
    return tomllib.loads(text)


def test_sample_contains_every_setting_and_no_other() -> None:
    shown = {name: set(section) for name, section in uncommented().items()}
    model = {
        name: set(field.annotation.model_fields) for name, field in Settings.model_fields.items() if field.annotation
    }
    assert shown == model


def test_claim_in_the_sample_is_valid() -> None:
    shown = uncommented()["mqtt"]["claim"]
    assert MqttSettings.model_validate({**tomllib.loads(SAMPLE.read_text())["mqtt"], "claim": shown}).claim


def test_commented_settings_show_their_defaults() -> None:
    active = tomllib.loads(SAMPLE.read_text())
    shown = uncommented()
    wrong = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        for key, setting in section.model_fields.items():
            default = setting.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                default = default.model_dump()
            if key in active[name] or default in (None, PydanticUndefined):
                continue
            if shown[name][key] != (str(default) if isinstance(default, Path) else default):
                wrong.append(f"{name}.{key}: {shown[name][key]} is not {default}")
    assert wrong == []
