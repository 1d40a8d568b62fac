"""The command line: its help, the settings that it checks, and its tokens."""

from __future__ import annotations

import argparse
import re
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from edge.__main__ import main, make_parser
from edge.core.authority import read_claims
from edge.core.principal import Scope
from edge.demo.run import make_parser as make_demo_parser
from edge.signalling.tokens import TokenKeys
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINIMAL = """
[device]
id = "cam-1"
[mqtt]
host = "broker.example"
[auth]
mode = "off"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "edge-streamer.toml"
    path.write_text(f'{text}[state]\ndir = "{directory}"\n')
    return path


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its commands; the demo has its own."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from parsers(make_demo_parser() if name == "demo" else inner)


PARSERS = list(parsers(make_parser()))


def test_every_command_is_walked() -> None:
    assert [parser.prog for parser in PARSERS] == [
        "edge-streamer",
        "edge-streamer run",
        "edge-streamer check-config",
        "edge-streamer token",
        "edge-streamer token keygen",
        "edge-streamer token sign",
        "edge-streamer demo",
    ]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_help_has_a_sentence_an_example_and_exit_codes(parser: argparse.ArgumentParser) -> None:
    said = parser.format_help()
    assert re.match(r"[A-Z][^.]+\.", parser.description or "")
    examples = re.findall(r"^  (?:sudo )?edge-streamer (.*)$", said, re.MULTILINE)
    assert examples
    assert re.search(r"^exit codes: 0 .*\b2 wrong arguments", said, re.MULTILINE | re.DOTALL)
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction)
    for example in examples:
        words = example.split()
        if words[0] == "demo":
            make_demo_parser().parse_args(words[1:])
        else:
            make_parser().parse_args(words)


@pytest.mark.parametrize("arguments", [[], ["token"], ["token", "sign"], ["demo", "--no-open"], ["check-config"]])
def test_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


def test_an_unknown_option_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--wiht-a-typo"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --wiht-a-typo" in capsys.readouterr().err


def test_check_config_and_run_report_faults_with_exit_code_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = written(tmp_path, MINIMAL)
    assert main(["check-config", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: ok\n"
    bad = written(tmp_path, MINIMAL + "[camera]\nhd = { fps = 0 }\nsize = 3\n")
    assert main(["check-config", str(bad)]) == 78
    assert main(["run", "--config", str(bad)]) == 78
    faults = ["camera.hd.fps: a whole number from 1 to 60", "camera.size: unknown key"]
    assert capsys.readouterr().err.splitlines() == faults * 2


def test_check_config_does_not_load_the_media_stack(tmp_path: Path) -> None:
    good = written(tmp_path, MINIMAL)
    code = (
        "import sys; from edge.__main__ import main; main(['check-config', sys.argv[1]]);"
        "sys.exit(any(name in sys.modules for name in ('aiortc', 'av', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(good)], cwd=ROOT, check=False).returncode == 0


def test_keys_and_tokens_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "keys"
    assert main(["token", "keygen", "--out", str(out), "--kid", "2026-11"]) == 0
    assert "private.pem" in capsys.readouterr().out
    private = out / "private.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "PRIVATE" in private.read_text()
    assert "PRIVATE" not in (out / "jwks.json").read_text()

    sign = ["token", "sign", "--key", str(private), "--device", "cam-1", "--sub", "anna"]
    sign += ["--scope", "view", "manage", "--client", "bff-1"]
    assert main(sign) == 0
    claims = TokenKeys(out / "jwks.json").claims(capsys.readouterr().out.strip())
    token = read_claims(claims, "cam-1", time.time())
    assert (token.subject, token.client) == ("anna", "bff-1")
    assert token.scopes == {Scope.VIEW, Scope.MANAGE}

    before = private.read_text()
    assert main(["token", "keygen", "--out", str(out)]) == 1
    assert private.read_text() == before
    (out / "jwks.json").unlink()
    assert main(sign) == 1
    assert "name its kid with --kid" in capsys.readouterr().err
    assert main([*sign, "--kid", "2026-11"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert main(["token", "sign", "--key", str(tmp_path / "none"), "--device", "a", "--sub", "b"]) == 1
    private.write_text("nonsense")
    assert main([*sign, "--kid", "2026-11"]) == 1
    assert "nonsense" not in capsys.readouterr().err
