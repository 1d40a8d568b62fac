"""The command line: whose options are whose."""

from __future__ import annotations

import pytest

from edge.__main__ import main


def test_the_demo_takes_its_options_in_any_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--no-open", "--help"])
    assert ended.value.code == 0
    assert "--viewers N" in capsys.readouterr().out


def test_an_option_that_no_command_knows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--wiht-a-typo"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --wiht-a-typo" in capsys.readouterr().err
