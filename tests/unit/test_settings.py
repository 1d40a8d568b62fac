"""The settings file and the command line."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from edge.__main__ import main
from edge.core.authority import read_claims
from edge.core.principal import Scope
from edge.errors import ConfigInvalid
from edge.settings import load_settings
from edge.signalling.tokens import TokenKeys

if TYPE_CHECKING:
    from pathlib import Path

LEAST = """
[device]
id = "cam-1"
[mqtt]
host = "broker.example"
ca_file = "/etc/ca.pem"
cert_file = "/etc/cert.pem"
key_file = "/etc/key.pem"
[auth]
mode = "off"
"""


def file(directory: Path, text: str) -> Path:
    path = directory / "edge-streamer.toml"
    path.write_text(text)
    return path


def faults(directory: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(file(directory, text))
    return caught.value.faults


def test_the_least_file_has_good_defaults(tmp_path: Path) -> None:
    settings = load_settings(file(tmp_path, LEAST))
    assert (settings.camera.hd.width, settings.camera.hd.height, settings.camera.hd.fps) == (1280, 720, 30)
    assert (settings.mqtt.effective_port, settings.mqtt.tls, settings.mqtt.prefix) == (8883, True, "edge/v1")
    assert (settings.api.host, settings.camera.idle_stop_s) == ("127.0.0.1", 30)
    assert (settings.sessions.max_viewers, settings.sessions.connect_timeout_s) == (5, 15)


def test_every_fault_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        LEAST.replace("cam-1", "cam/1").replace("key_file", "kee_file")
        + '[camera]\nsource = "file"\nhd = { fps = 0 }\n[api]\nhost = "0.0.0.0"\n[colour]\nx = 1\n',
    )
    keys = {fault.partition(":")[0] for fault in told}
    assert keys >= {"device.id", "mqtt.kee_file", "camera.hd.fps", "api.host", "colour"}
    assert "mqtt.kee_file: unknown key" in told
    assert "cam/1" not in "".join(told), "no fault repeats a value"


def test_authority_is_required_where_nothing_is_said_and_its_absence_has_to_be_said(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, LEAST.replace('[auth]\nmode = "off"', ""))
    assert fault.startswith("auth.jwks_file: ")
    assert 'mode = "off"' in fault
    settings = load_settings(file(tmp_path, LEAST.replace('mode = "off"', 'jwks_file = "/etc/jwks.json"')))
    assert (settings.auth.mode, settings.auth.trust_clock) == ("required", False)


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ("sd = { width = 1920, height = 1080 }", "sd is larger than hd"),
        ("sd = { fps = 20 }", "sd.fps has to divide hd.fps"),
        ("stall_s = 0.5\nhd = { fps = 5 }\nsd = { fps = 5 }", "shorter than 3 pictures"),
        (
            "hd = { width = 640, height = 360, fps = 15, max_bps = 500000 }\nsd = { fps = 15, max_bps = 8000000 }",
            "level",
        ),
        ('source = "file"', "path is required"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path: Path, camera: str, words: str) -> None:
    (fault,) = faults(tmp_path, LEAST + f"[camera]\n{camera}\n")
    assert words in fault


@pytest.mark.parametrize(
    ("host", "more", "by_aws", "alpn"),
    [
        ("broker.example", "", False, False),
        ("x-ats.iot.eu-central-1.amazonaws.com", "", True, False),
        ("X.iot.cn-north-1.AMAZONAWS.com.cn", "port = 443", True, True),
        ("x-ats.iot.eu-central-1.amazonaws.com", 'port = 443\nclient = "paho"', False, True),
        ("broker.example", 'client = "aws"', True, False),
        ("amazonaws.com.example", "port = 443", False, False),
    ],
)
def test_which_client_makes_the_link(tmp_path: Path, host: str, more: str, by_aws: bool, alpn: bool) -> None:
    text = LEAST.replace("broker.example", host).replace("[auth]", f"{more}\n[auth]")
    mqtt = load_settings(file(tmp_path, text)).mqtt
    assert (mqtt.by_aws, mqtt.alpn == ["x-amzn-mqtt-ca"]) == (by_aws, alpn)


@pytest.mark.parametrize("more", ['version = "3.1.1"', 'username = "cam"'])
def test_what_awss_client_cannot_do_is_told(tmp_path: Path, more: str) -> None:
    (fault,) = faults(tmp_path, LEAST.replace("[auth]", f'client = "aws"\n{more}\n[auth]'))
    assert fault.startswith("mqtt: the aws client takes")


def test_a_credential_is_a_file_that_systemd_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LEAST.replace("/etc/key.pem", "credential:device.key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert str(load_settings(file(tmp_path, text)).mqtt.key_file) == "/etc/edge-streamer/credentials/device.key"
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    assert load_settings(file(tmp_path, text)).mqtt.key_file == directory / "device.key"
    (directory / "edge_device.key").touch()  # as the unit's LoadCredential=edge:DIRECTORY names it
    assert load_settings(file(tmp_path, text)).mqtt.key_file == directory / "edge_device.key"
    (directory / "device.key").touch()  # as LoadCredential=device.key:FILE in a drop-in does
    assert load_settings(file(tmp_path, text)).mqtt.key_file == directory / "device.key"
    (fault,) = faults(tmp_path, LEAST.replace("/etc/key.pem", "credential:../key"))
    assert fault.startswith("mqtt.key_file: ")


CLAIM = 'claim = { template = "edge-camera", cert_file = "credential:claim.pem", key_file = "/etc/claim.key" }'


def test_a_claim_needs_none_of_the_files_to_be_there(tmp_path: Path) -> None:
    claim = load_settings(file(tmp_path, LEAST.replace("[auth]", f"{CLAIM}\n[auth]"))).mqtt.claim
    assert claim is not None
    assert str(claim.cert_file) == "/etc/edge-streamer/credentials/claim.pem"
    assert (claim.template, claim.parameters) == ("edge-camera", {})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/etc/key.pem", "credential:device.key", "in one directory"),
        ("/etc/cert.pem", "/etc/key.pem", "four files"),
        ("/etc/claim.key", "/etc/key.pem", "four files"),
        ('cert_file = "/etc/cert.pem"\nkey_file = "/etc/key.pem"\n', "", "claim needs cert_file and key_file"),
        (', key_file = "/etc/claim.key"', "", "mqtt.claim.key_file: Field required"),
        ("edge-camera", "edge/+", "mqtt.claim.template: "),
    ],
)
def test_a_claim_that_does_not_fit_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    (fault,) = faults(tmp_path, LEAST.replace("[auth]", f"{CLAIM}\n[auth]").replace(old, new))
    assert words in fault


def test_what_a_claim_brings_is_not_put_among_credentials(tmp_path: Path) -> None:
    text = LEAST.replace("/etc/key.pem", "credential:device.key").replace("/etc/cert.pem", "credential:device.pem")
    (fault,) = faults(tmp_path, text.replace("[auth]", f"{CLAIM}\n[auth]"))
    assert fault == "mqtt: with claim, cert_file and key_file are written: they cannot be credentials"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ('key_file = "/etc/key.pem"', "mqtt"),
        ('mode = "off"', "auth.jwks_file"),
        ('host = "broker.example"', "mqtt.host"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: str, key: str) -> None:
    assert any(fault.startswith(f"{key}: ") for fault in faults(tmp_path, LEAST.replace(change, "")))


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE__CAMERA__HD__FPS", "15")
    monkeypatch.setenv("EDGE__MQTT__HOST", "other.example")
    settings = load_settings(file(tmp_path, LEAST + "[camera.hd]\nfps = 25\nwidth = 640\n[camera.sd]\nfps = 15\n"))
    assert (settings.camera.hd.fps, settings.camera.hd.width, settings.mqtt.host) == (15, 640, "other.example")
    monkeypatch.setenv("EDGE__CAMERA__HD__FPS", "many")
    assert faults(tmp_path, LEAST)[0].startswith("camera.hd.fps: ")


def test_what_is_no_toml_and_what_is_not_there(tmp_path: Path) -> None:
    assert "not TOML" in faults(tmp_path, "[device")[0]
    with pytest.raises(ConfigInvalid, match="No such file"):
        load_settings(tmp_path / "nothing.toml")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = file(tmp_path, LEAST)
    assert main(["check-config", str(good)]) == 0
    assert "ok" in capsys.readouterr().out
    bad = file(tmp_path, LEAST + "[camera]\nhd = { fps = 0 }\nsize = 3\n")
    assert main(["check-config", str(bad)]) == 78
    assert main(["run", "--config", str(bad)]) == 78
    told = capsys.readouterr().err
    assert "camera.hd.fps: " in told
    assert "camera.size: unknown key" in told


def test_the_command_line_makes_keys_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "keys"
    assert main(["token", "keygen", "--out", str(out), "--kid", "2026-11"]) == 0
    assert "private.pem" in capsys.readouterr().out
    private = out / "private.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "PRIVATE" in private.read_text()
    assert "PRIVATE" not in (out / "jwks.json").read_text()

    asked = [
        "--key",
        str(private),
        "--device",
        "cam-1",
        "--sub",
        "anna",
        "--scope",
        "view",
        "manage",
        "--client",
        "bff-1",
    ]
    assert main(["token", "sign", *asked]) == 0
    claims = TokenKeys(out / "jwks.json").claims(capsys.readouterr().out.strip())
    token = read_claims(claims, "cam-1", time.time())
    assert (token.subject, token.client) == ("anna", "bff-1")
    assert token.scopes == {Scope.VIEW, Scope.MANAGE}

    before = private.read_text()
    assert main(["token", "keygen", "--out", str(out)]) == 1
    assert private.read_text() == before
    (out / "jwks.json").unlink()
    assert main(["token", "sign", *asked]) == 1
    assert "say its kid" in capsys.readouterr().err
    assert main(["token", "sign", *asked, "--kid", "2026-11"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert main(["token", "sign", "--key", str(tmp_path / "none"), "--device", "a", "--sub", "b"]) == 1
    private.write_text("nonsense")
    assert main(["token", "sign", *asked, "--kid", "2026-11"]) == 1
    assert "nonsense" not in capsys.readouterr().err


def test_checking_does_not_load_the_media_stack(tmp_path: Path) -> None:
    good = file(tmp_path, LEAST)
    code = (
        "import sys; from edge.__main__ import main; main(['check-config', sys.argv[1]]);"
        "sys.exit(any(name in sys.modules for name in ('aiortc', 'av', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(good)], check=False).returncode == 0
