"""`run` and `check-config` refuse the same settings, and report every fault and warning at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.__main__ import main
from edge.client import Signer
from edge.client.tokens import jwks
from edge.errors import ConfigInvalid
from edge.preflight import check
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, toml

if TYPE_CHECKING:
    from collections.abc import Sequence

CLAIM = {"template": "edge-camera"}


class Device:
    """A settings file and every file that it names, all good."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        self.cert_file, self.key_file = self.authority.issue("device")
        self.jwks_file = directory / "jwks.json"
        self.jwks_file.write_text(jwks(Signer.generate()))
        self.password_file = directory / "password"
        self.password_file.write_text("secret\n")
        self.config = directory / "edge-streamer.toml"
        self.settings: dict[str, dict[str, Any]] = {
            "device": {"id": "cam-1"},
            "mqtt": {
                "host": "broker.example",
                "ca_file": str(self.authority.ca_file),
                "cert_file": str(self.cert_file),
                "key_file": str(self.key_file),
                "username": "cam-1",
                "password_file": str(self.password_file),
            },
            "auth": {"jwks_file": str(self.jwks_file)},
            "state": {"dir": str(directory / "state" / "of" / "device")},
            "camera": {"source": "synthetic"},
        }

    def write(self) -> Path:
        self.config.write_text(toml(self.settings))
        return self.config

    def faults(self) -> list[str]:
        """The faults, without the directory. Both commands print the same."""
        with pytest.raises(ConfigInvalid) as caught:
            check(self.write())
        return self._shortened(caught.value.faults)

    def warnings(self) -> list[str]:
        """The warnings about settings without a fault, without the directory."""
        return self._shortened(check(self.write())[1])

    def _shortened(self, lines: Sequence[str]) -> list[str]:
        return [line.replace(f"{self.directory}/", "") for line in lines]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return Device(tmp_path)


def test_good_settings_pass_and_leave_nothing_on_the_disk(device: Device) -> None:
    config = device.write()
    before = sorted(device.directory.iterdir())
    settings, warnings = check(config)
    assert (settings.device.id, warnings) == ("cam-1", [])
    assert sorted(device.directory.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        ("", "it is not a JSON document with a list of keys"),
        ('{"keys": [{"kty": "RSA", "kid": "a"}]}', "it contains no Ed25519 or P-256 key with a kid"),
    ],
)
def test_public_keys_that_cannot_be_used_are_faults(device: Device, content: str | None, words: str) -> None:
    device.jwks_file.unlink()
    if content is not None:
        device.jwks_file.write_text(content)
    assert device.faults() == [f"auth.jwks_file: jwks.json: {words}"]


def test_an_empty_list_of_keys_locks_every_token_out_and_is_a_warning(device: Device) -> None:
    device.jwks_file.write_text('{"keys": []}')
    assert device.warnings() == ["auth.jwks_file: jwks.json: it contains no key, so that every token is refused"]


def test_without_authority_no_keys_are_needed(device: Device) -> None:
    device.settings["auth"] = {"mode": "off", "jwks_file": "/nowhere/jwks.json"}
    check(device.write())


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file", "password_file"])
def test_missing_and_unreadable_broker_files_are_warnings(device: Device, name: str) -> None:
    path = Path(device.settings["mqtt"][name])
    path.unlink()
    assert device.warnings() == [f"mqtt.{name}: {path.name}: No such file or directory"]
    path.mkdir()
    assert device.warnings() == [f"mqtt.{name}: {path.name}: Is a directory"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_broker_files_that_cannot_be_parsed_are_warnings(device: Device, content: bytes) -> None:
    for name in ("ca_file", "cert_file", "key_file"):
        Path(device.settings["mqtt"][name]).write_bytes(content)
    assert device.warnings() == [
        "mqtt.ca_file: test-ca.pem: not a certificate in PEM",
        "mqtt.cert_file: device.pem: not a certificate in PEM",
        "mqtt.key_file: device.key: not a private key in PEM",
    ]


def test_a_key_of_another_certificate_is_a_warning(device: Device) -> None:
    _, other = device.authority.issue("other")
    shutil.copy(other, device.key_file)
    assert device.warnings() == [
        f"mqtt.key_file: device.key: does not belong to the certificate {device.cert_file}".replace(
            f"{device.directory}/", ""
        )
    ]


def test_an_encrypted_key_is_a_warning(device: Device) -> None:
    encryption = serialization.BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    device.key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    (warning,) = device.warnings()
    assert warning == "mqtt.key_file: device.key: the private key is encrypted; the daemon needs one without a password"


def test_an_expired_certificate_is_not_a_fault_of_the_settings(device: Device) -> None:
    # The clock may be wrong; the daemon reports it while it runs.
    device.authority.issue("device", since=timedelta(days=-3), until=timedelta(days=-2))
    check(device.write())


@pytest.mark.parametrize("directory", ["/proc/edge/state", "/proc", "{}/password/state"])
def test_a_state_directory_that_cannot_be_made_or_written_is_a_fault(device: Device, directory: str) -> None:
    device.settings["state"]["dir"] = directory.format(device.directory)
    (fault,) = device.faults()
    assert fault.startswith("state.dir: ")
    assert "cannot be made or written: " in fault


def test_all_faults_come_at_once_with_those_of_the_file(device: Device) -> None:
    device.jwks_file.write_text('{"keys": [7]}')
    device.settings["state"]["dir"] = "/proc/state"
    device.settings["sessions"] = {"max_viewers": 0}
    device.settings["camera"] |= {"source": "file", "fps": 3}
    keys = [fault.partition(": ")[0] for fault in device.faults()]
    assert sorted(keys) == [
        "auth.jwks_file",
        "camera.fps",
        "camera.path",
        "sessions.max_viewers",
        "state.dir",
    ]


def test_files_of_a_section_with_other_faults_are_checked(device: Device) -> None:
    device.settings["mqtt"] |= {"prot": 3, "keepalive_s": 0}
    device.settings["auth"]["jwks"] = "x"
    device.jwks_file.unlink()
    assert device.faults() == [
        "mqtt.keepalive_s: a whole number from 5 to 1200",
        "mqtt.prot: unknown key; did you mean port?",
        "auth.jwks: unknown key; did you mean jwks_file?",
        "auth.jwks_file: jwks.json: No such file or directory",
    ]


@pytest.mark.parametrize(("section", "faulty"), [("state", {"dir": 3}), ("mqtt", {"claim": {}}), ("auth", {"mode": 1})])
def test_a_section_that_may_mean_something_else_is_not_checked(
    device: Device, section: str, faulty: dict[str, Any]
) -> None:
    device.jwks_file.unlink()
    device.settings["state"]["dir"] = "/proc/state"
    device.settings[section] |= faulty
    (key,) = faulty
    others = [fault for fault in device.faults() if not fault.startswith(f"{section}.{key}")]
    assert others
    assert not [fault for fault in others if fault.startswith(f"{section}.")]


def test_run_and_check_config_print_the_same_faults(device: Device) -> None:
    device.settings["state"]["dir"] = "/proc/state"
    device.jwks_file.unlink()
    config = str(device.write())
    ended = [
        subprocess.run(
            [sys.executable, "-m", "edge", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for arguments in (["check-config", config], ["run", "--config", config])
    ]
    assert [each.returncode for each in ended] == [78, 78]
    assert ended[0].stderr == ended[1].stderr
    assert ended[0].stderr.splitlines() == [
        f"auth.jwks_file: {device.jwks_file}: No such file or directory",
        "state.dir: /proc/state: cannot be made or written: No such file or directory",
    ]


class TestClaim:
    """A device that obtains its certificate by a claim."""

    @pytest.fixture
    def claiming(self, device: Device) -> Device:
        claim_cert, claim_key = device.authority.issue("claim")
        own = device.directory / "own"
        device.settings["mqtt"] |= {
            "cert_file": str(own / "device.pem"),
            "key_file": str(own / "device.key"),
            "claim": {**CLAIM, "cert_file": str(claim_cert), "key_file": str(claim_key)},
        }
        return device

    def test_its_own_files_may_be_missing(self, claiming: Device) -> None:
        check(claiming.write())
        assert not (claiming.directory / "own").exists()

    def test_the_claims_files_must_be_there(self, claiming: Device) -> None:
        (claiming.directory / "claim.pem").unlink()
        assert claiming.warnings() == ["mqtt.claim.cert_file: claim.pem: No such file or directory"]

    def test_the_claims_files_are_not_needed_any_more_once_it_has_its_own(self, claiming: Device) -> None:
        own = claiming.directory / "own"
        own.mkdir(mode=0o700)
        for name in ("device.pem", "device.key"):
            shutil.copy(claiming.directory / name, own)
        (claiming.directory / "claim.pem").unlink()
        check(claiming.write())

    def test_a_directory_that_others_can_read_is_a_fault(self, claiming: Device) -> None:
        (claiming.directory / "own").mkdir(mode=0o755)
        (fault,) = claiming.faults()
        assert fault.startswith("mqtt.key_file: own: the directory must belong to the daemon's user")

    def test_a_directory_that_cannot_be_made_is_a_fault(self, claiming: Device) -> None:
        claiming.settings["mqtt"] |= {"cert_file": "/proc/own/device.pem", "key_file": "/proc/own/device.key"}
        (fault,) = claiming.faults()
        assert fault.startswith("mqtt.key_file: /proc/own: cannot be made or written")


class TestCredentials:
    """`credential:NAME`, inside and outside of the service."""

    @pytest.fixture
    def named(self, device: Device) -> Device:
        device.settings["mqtt"] |= {"cert_file": "credential:device.pem", "key_file": "credential:device.key"}
        return device

    def test_in_the_service_a_missing_credential_is_a_warning(
        self, named: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (named.directory / "run").mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(named.directory / "run"))
        assert named.warnings() == [
            "mqtt.cert_file: run/device.pem: No such file or directory",
            "mqtt.key_file: run/device.key: No such file or directory",
        ]
        for name in ("device.pem", "device.key"):
            shutil.copy(named.directory / name, named.directory / "run" / f"edge_{name}")
        check(named.write())

    def test_before_the_credentials_are_there_they_are_unknown(
        self, named: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("edge.mqtt.settings._CREDENTIALS", str(named.directory / "credentials"))
        assert main(["check-config", str(named.write())]) == 0
        said = capsys.readouterr().err
        assert said.count("(only root can check a credential, on the device)") == 2
        assert said.startswith("warning: mqtt.cert_file: ")

    def test_root_on_the_device_finds_a_missing_credential(
        self, named: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        credentials = named.directory / "credentials"
        credentials.mkdir()
        monkeypatch.setattr("edge.mqtt.settings._CREDENTIALS", str(credentials))
        shutil.copy(named.cert_file, credentials)
        assert named.warnings() == ["mqtt.key_file: credentials/device.key: No such file or directory"]


def test_a_missing_recording_is_a_warning(device: Device) -> None:
    device.settings["camera"] = {"source": "file", "path": "/nowhere/loop.ts"}
    assert check(device.write())[1] == ["camera.path: /nowhere/loop.ts: no such file"]


def test_the_client_of_aws_must_be_installed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.settings["mqtt"] = {**device.settings["mqtt"], "client": "aws"}
    for name in ("username", "password_file"):
        del device.settings["mqtt"][name]
    check(device.write())
    monkeypatch.setitem(sys.modules, "awscrt", None)
    (fault,) = device.faults()
    assert "pip install 'edge-streamer[aws]'" in fault


BLOCKED = "import sys; sys.modules['systemd'] = None; from edge.__main__ import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("command", [["check-config"], ["run", "--config"]])
def test_systemd_without_its_package_is_a_fault(device: Device, command: list[str], tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED, *command, str(device.write())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 78
    (fault,) = ended.stderr.splitlines()
    assert fault.startswith("systemd runs this service (NOTIFY_SOCKET is set)")
    assert fault.endswith(": apt install python3-systemd, or pip install 'edge-streamer[pi]'")
