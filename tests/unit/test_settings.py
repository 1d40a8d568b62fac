"""The settings file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.camera.settings import CameraSettings
from edge.contract.faults import plain_faults
from edge.demo.daemon_process import DaemonOptions, settings_file
from edge.errors import ConfigInvalid
from edge.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL = """
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


def test_a_minimal_file_has_good_defaults(tmp_path: Path) -> None:
    settings = load_settings(file(tmp_path, MINIMAL))
    assert (settings.camera.hd.width, settings.camera.hd.height, settings.camera.hd.fps) == (1280, 720, 30)
    assert (settings.mqtt.effective_port, settings.mqtt.tls, settings.mqtt.prefix) == (8883, True, "edge/v1")
    assert (settings.api.host, settings.camera.idle_stop_s) == ("127.0.0.1", 30)
    assert (settings.sessions.max_viewers, settings.sessions.connect_timeout_s) == (5, 15)


def test_the_demo_allows_viewers_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(settings_file(DaemonOptions("synthetic", 5, 1883, 8081), tmp_path / "jwks.json", tmp_path))
    assert load_settings(path).ice.allow_loopback


def test_all_faults_are_reported_together_with_their_keys(tmp_path: Path) -> None:
    reported = faults(
        tmp_path,
        MINIMAL.replace("cam-1", "cam/1").replace("key_file", "kee_file")
        + '[camera]\nsource = "file"\nhd = { fps = 0 }\n[api]\nhost = "0.0.0.0"\n[colour]\nx = 1\n',
    )
    keys = {fault.partition(":")[0] for fault in reported}
    assert keys >= {"device.id", "mqtt.kee_file", "camera.hd.fps", "api.host", "colour"}
    assert "mqtt.kee_file: unknown key; did you mean key_file?" in reported
    assert "colour: unknown key" in reported
    assert "cam/1" not in "".join(reported), "a fault repeats a value"


def test_authority_is_required_unless_it_is_turned_off(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, MINIMAL.replace('[auth]\nmode = "off"', ""))
    assert fault.startswith("auth.jwks_file: ")
    assert 'mode = "off"' in fault
    settings = load_settings(file(tmp_path, MINIMAL.replace('mode = "off"', 'jwks_file = "/etc/jwks.json"')))
    assert (settings.auth.mode, settings.auth.trust_clock) == ("required", False)


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ("sd = { width = 1920, height = 1080 }", "camera.sd: larger than camera.hd"),
        ("sd = { fps = 20 }", "camera.sd.fps: must be a divisor of camera.hd.fps (30)"),
        ("stall_s = 0.5\nhd = { fps = 5 }\nsd = { fps = 5 }", "camera.stall_s: shorter than 3 frames"),
        (
            "hd = { width = 640, height = 360, fps = 15, max_bps = 500000 }\nsd = { fps = 15, max_bps = 8000000 }",
            "level",
        ),
        ('source = "file"', "camera.path: missing"),
    ],
)
def test_fields_that_contradict_each_other_are_reported(tmp_path: Path, camera: str, words: str) -> None:
    (fault,) = faults(tmp_path, MINIMAL + f"[camera]\n{camera}\n")
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
def test_the_host_selects_the_mqtt_client(tmp_path: Path, host: str, more: str, by_aws: bool, alpn: bool) -> None:
    text = MINIMAL.replace("broker.example", host).replace("[auth]", f"{more}\n[auth]")
    mqtt = load_settings(file(tmp_path, text)).mqtt
    assert (mqtt.by_aws, mqtt.alpn == ["x-amzn-mqtt-ca"]) == (by_aws, alpn)


@pytest.mark.parametrize("more", ['version = "3.1.1"', 'username = "cam"'])
def test_options_that_awss_client_lacks_are_reported(tmp_path: Path, more: str) -> None:
    (fault,) = faults(tmp_path, MINIMAL.replace("[auth]", f'client = "aws"\n{more}\n[auth]'))
    assert fault.startswith("mqtt.client: the aws client needs")


def test_a_credential_is_the_file_that_systemd_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.replace("/etc/key.pem", "credential:device.key")
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
    (fault,) = faults(tmp_path, MINIMAL.replace("/etc/key.pem", "credential:../key"))
    assert fault.startswith("mqtt.key_file: ")


CLAIM = 'claim = { template = "edge-camera", cert_file = "credential:claim.pem", key_file = "/etc/claim.key" }'


def test_a_claim_is_read_without_its_files(tmp_path: Path) -> None:
    claim = load_settings(file(tmp_path, MINIMAL.replace("[auth]", f"{CLAIM}\n[auth]"))).mqtt.claim
    assert claim is not None
    assert str(claim.cert_file) == "/etc/edge-streamer/credentials/claim.pem"
    assert (claim.template, claim.parameters) == ("edge-camera", {})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/etc/key.pem", "credential:device.key", "must be in one directory"),
        ("/etc/cert.pem", "/etc/key.pem", "four different files"),
        ("/etc/claim.key", "/etc/key.pem", "four different files"),
        ('cert_file = "/etc/cert.pem"\nkey_file = "/etc/key.pem"\n', "", "mqtt.claim: needs cert_file and key_file"),
        (', key_file = "/etc/claim.key"', "", "mqtt.claim.key_file: missing (a path)"),
        ("edge-camera", "edge/+", "mqtt.claim.template: "),
    ],
)
def test_faults_of_a_claim_are_reported(tmp_path: Path, old: str, new: str, words: str) -> None:
    (fault,) = faults(tmp_path, MINIMAL.replace("[auth]", f"{CLAIM}\n[auth]").replace(old, new))
    assert words in fault


def test_a_claimed_certificate_cannot_be_a_credential(tmp_path: Path) -> None:
    text = MINIMAL.replace("/etc/key.pem", "credential:device.key").replace("/etc/cert.pem", "credential:device.pem")
    (fault,) = faults(tmp_path, text.replace("[auth]", f"{CLAIM}\n[auth]"))
    assert fault == "mqtt.cert_file: cannot be a credential, since the device writes it (claim)"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ('key_file = "/etc/key.pem"', "mqtt.key_file"),
        ('mode = "off"', "auth.jwks_file"),
        ('host = "broker.example"', "mqtt.host"),
    ],
)
def test_missing_keys_are_reported(tmp_path: Path, change: str, key: str) -> None:
    assert any(fault.startswith(f"{key}: ") for fault in faults(tmp_path, MINIMAL.replace(change, "")))


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE__CAMERA__HD__FPS", "15")
    monkeypatch.setenv("EDGE__MQTT__HOST", "other.example")
    settings = load_settings(file(tmp_path, MINIMAL + "[camera.hd]\nfps = 25\nwidth = 640\n[camera.sd]\nfps = 15\n"))
    assert (settings.camera.hd.fps, settings.camera.hd.width, settings.mqtt.host) == (15, 640, "other.example")
    monkeypatch.setenv("EDGE__CAMERA__HD__FPS", "many")
    assert faults(tmp_path, MINIMAL)[0].startswith("camera.hd.fps: ")


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    assert "not TOML" in faults(tmp_path, "[device")[0]
    with pytest.raises(ConfigInvalid, match="No such file"):
        load_settings(tmp_path / "nothing.toml")


def test_contradictions_are_reported_together_with_other_faults(tmp_path: Path) -> None:
    text = MINIMAL.replace('key_file = "/etc/key.pem"', 'password_file = "/etc/password"\nport = 0')
    camera = """[camera]
source = "file"
stall_s = 0.5
hd = { min_bps = 3000000, fps = 5, colour = 1 }
sd = { fps = 3, width = 9 }
"""
    assert set(faults(tmp_path, text.replace('"off"', '"required"') + camera)) == {
        "mqtt.port: a whole number from 1 to 65535",
        "mqtt.key_file: missing; cert_file needs it",
        "mqtt.username: missing; password_file needs it",
        'auth.jwks_file: missing: the file with the backend\'s public keys; only mode = "off" needs none',
        'camera.path: missing; source = "file" needs it',
        "camera.hd.colour: unknown key",
        "camera.hd.min_bps: greater than max_bps",
        "camera.sd.width: a whole number from 160 to 1920 and a multiple of 2",
        "camera.sd.fps: must be a divisor of camera.hd.fps (5)",
        "camera.stall_s: shorter than 3 frames at 5 fps",
    }


def test_rules_that_read_a_faulty_field_are_skipped(tmp_path: Path) -> None:
    camera = "[camera]\nhd = { fps = 0 }\nsd = { fps = 7 }\n"
    assert faults(tmp_path, MINIMAL + camera) == ("camera.hd.fps: a whole number from 1 to 60",)


def test_a_misspelt_section_or_variable_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE__CAMRA__HD__FPS", "15")
    assert faults(tmp_path, MINIMAL + "[sesions]\nmax_viewers = 1\n") == (
        "sesions: unknown key; did you mean sessions?",
        "EDGE__CAMRA__HD__FPS: unknown key; did you mean EDGE__CAMERA?",
    )


QUALITY = st.fixed_dictionaries(
    {},
    optional={
        "width": st.sampled_from([160, 640, 1280, 1920]),
        "height": st.sampled_from([120, 360, 720, 1080]),
        "fps": st.integers(1, 60),
        "min_bps": st.integers(50_000, 3_000_000),
        "max_bps": st.integers(100_000, 20_000_000),
    },
)
UNRELATED = st.fixed_dictionaries(
    {},
    optional={"number": st.just(99), "idle_stop_s": st.just(-1), "colour": st.just("red"), "open_timeout_s": st.none()},
)


def faults_of_camera(fields: dict[str, Any]) -> set[str]:
    try:
        CameraSettings.model_validate(fields)
    except ValidationError as exc:
        return set(plain_faults(exc.errors(), CameraSettings))
    return set()


@given(hd=QUALITY, sd=QUALITY, stall_s=st.floats(0.5, 60), unrelated=UNRELATED)
def test_contradictions_do_not_depend_on_faults_elsewhere(
    hd: dict[str, Any], sd: dict[str, Any], stall_s: float, unrelated: dict[str, Any]
) -> None:
    fields = {"hd": hd, "sd": sd, "stall_s": stall_s}
    alone = faults_of_camera(fields)
    together = faults_of_camera(fields | unrelated)
    assert together - alone == faults_of_camera(unrelated)
    assert alone <= together
