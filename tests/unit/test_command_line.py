"""The command line: whose options are whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_takes_its_options_in_any_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--no-open", "--help"])
    assert ended.value.code == 0
    assert "--viewers N" in capsys.readouterr().out


def test_check_config_says_which_files_are_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, jwks = tmp_path / "edge.toml", tmp_path / "jwks.json"
    jwks.touch()
    config.write_text(
        f"""
        [device]
        id = "cam-1"
        [mqtt]
        host = "broker.example"
        cert_file = "/nowhere/device.pem"
        key_file = "/nowhere/device.key"
        [auth]
        jwks_file = "{jwks}"
        """
    )
    assert main(["check-config", str(config)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{config}: ok\n"
    assert told.err.splitlines() == [
        "warning: mqtt.cert_file: /nowhere/device.pem: No such file or directory",
        "warning: mqtt.key_file: /nowhere/device.key: No such file or directory",
    ]


def test_an_option_that_no_command_knows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--wiht-a-typo"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --wiht-a-typo" in capsys.readouterr().err
