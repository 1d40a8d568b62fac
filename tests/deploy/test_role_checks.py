"""The programs with which the role checks the operator's input and looks at a device, before anything is changed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rigs.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILES = Path(__file__).parents[2] / "deploy/ansible/roles/edge_streamer/files"
TOP = "edge-streamer-1.0.0-abcd-arm64"
DESCRIPTION = {"release": "1.0.0-abcd", "version": "1.0.0", "architecture": "arm64", "pythons": ["3.11"]}


def run(program: str, *arguments: str, stdin: str = "", path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FILES / program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        env=None if path is None else {"PATH": path},
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def inputs(authority: Authority) -> dict[str, Any]:
    certificate, key = authority.issue("cam-1")
    return {
        "device_id": "cam-1",
        "settings": {
            "mqtt": {
                "ca_file": "/etc/edge-streamer/ca.pem",
                "cert_file": "credential:device.pem",
                "key_file": "credential:device.key",
            },
            "auth": {"jwks_file": "/etc/edge-streamer/keys.json"},
        },
        "files": {"ca.pem": authority.ca_file.read_text(), "keys.json": '{"keys": [{"kty": "OKP"}]}'},
        "credentials": {"device.pem": certificate.read_text(), "device.key": key.read_text()},
        "gate_timeout_s": 120,
        "journald_max_use": "200M",
        "firewall": False,
        "lists": {"edge_streamer_boot_config": [], "edge_streamer_firewall_tcp_ports": [22]},
    }


def checked(inputs: Mapping[str, Any]) -> dict[str, list[str]]:
    done = run("check_inputs.py", stdin=json.dumps(inputs))
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def test_correct_input_has_no_fault(inputs: dict[str, Any]) -> None:
    assert checked(inputs) == {"faults": [], "missing": []}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device_id": "a b"}, "edge_streamer_device_id: a b has other characters"),
        ({"gate_timeout_s": "5"}, "edge_streamer_gate_timeout_s: 5 is not between 10 and 800"),
        ({"gate_timeout_s": 801}, "is not between 10 and 800"),
        ({"journald_max_use": "200 MB"}, "edge_streamer_journald_max_use: 200 MB is not a size"),
        ({"lists": {"edge_streamer_boot_config": "dtoverlay=imx708"}}, "edge_streamer_boot_config is not a list"),
        ({"settings": {"camera": "synthetic"}}, "edge_streamer_settings: camera is not a section"),
        ({"files": {"../ca.pem": "x"}}, "edge_streamer_files: ../ca.pem is not a plain file name"),
        ({"files": {"ca.pem": "nonsense"}}, "edge_streamer_files: ca.pem is not a certificate in PEM"),
        ({"files": {"jwks.json": "{"}}, "edge_streamer_files: jwks.json has no public keys"),
        ({"files": {"keys.json": '{"keys": []}'}}, "edge_streamer_files: keys.json has no public keys"),
        ({"credentials": {"device.key": ""}}, "edge_streamer_credentials: device.key is empty"),
    ],
)
def test_each_fault_is_one_sentence(inputs: dict[str, Any], change: dict[str, Any], words: str) -> None:
    faults = checked({**inputs, **change})["faults"]
    assert len(faults) == 1, faults
    assert words in faults[0]


@pytest.mark.parametrize(
    "ice",
    [
        {},
        {"udp_port_min": 50000},
        {"udp_port_min": "50000", "udp_port_max": "50099"},  # text, which the daemon would refuse
        {"udp_port_min": 50099, "udp_port_max": 50000},
        {"udp_port_min": 22, "udp_port_max": 50000},
        {"udp_port_min": True, "udp_port_max": 50000},
    ],
)
def test_the_firewall_needs_the_range_of_udp_ports(inputs: dict[str, Any], ice: dict[str, object]) -> None:
    inputs["settings"]["ice"] = ice
    assert checked(inputs)["faults"] == []
    (fault,) = checked({**inputs, "firewall": True})["faults"]
    assert "edge_streamer_firewall needs a range of UDP ports: set ice.udp_port_min and ice.udp_port_max" in fault


def test_the_firewall_takes_a_range_of_udp_ports_and_a_list_of_tcp_ports(inputs: dict[str, Any]) -> None:
    inputs["settings"]["ice"] = {"udp_port_min": 50000, "udp_port_max": 50099}
    inputs["firewall"] = True
    inputs["lists"]["edge_streamer_firewall_tcp_ports"] = [22, "8443"]
    assert checked(inputs)["faults"] == []
    inputs["lists"]["edge_streamer_firewall_tcp_ports"] = [22, 0, "70000", "ssh", "22; accept", True]
    assert checked(inputs)["faults"] == [
        f"edge_streamer_firewall_tcp_ports: {port} is not a port from 1 to 65535"
        for port in (0, "70000", "ssh", "22; accept", True)
    ]


def test_all_certificates_are_checked_and_all_faults_reported_at_once(
    inputs: dict[str, Any], authority: Authority
) -> None:
    expired, key = authority.issue("expired", until=timedelta(hours=-1))
    early, _ = authority.issue("early", since=timedelta(hours=1))
    inputs["files"]["ca.pem"] += expired.read_text()
    inputs["credentials"] |= {"claim.pem": early.read_text(), "claim.key": key.read_text(), "device.pem": "x"}
    assert checked(inputs)["faults"] == [
        "edge_streamer_files: ca.pem has expired: get a new one",
        "edge_streamer_credentials: device.pem is not a certificate in PEM: use the right file",
        "edge_streamer_credentials: claim.pem is not valid yet: check this machine's clock, or get a new one",
        "edge_streamer_credentials: claim.key does not belong to claim.pem: use the key of that certificate",
    ]


def test_files_that_the_settings_name_and_nobody_supplies_are_listed(inputs: dict[str, Any]) -> None:
    inputs["credentials"] = {}
    inputs["settings"]["ice"] = {"servers": [{"password_file": "credential:turn"}]}
    assert checked(inputs)["missing"] == ["credentials/device.key", "credentials/device.pem", "credentials/turn"]


def test_no_fault_shows_a_secret(inputs: dict[str, Any]) -> None:
    inputs["credentials"] = {"device.pem": "SECRET", "device.key": "SECRET"}
    done = run("check_inputs.py", stdin=json.dumps(inputs))
    assert "SECRET" not in done.stdout + done.stderr


LEAVES = st.sampled_from(["credential:a", "credential:b.pem", "/etc/edge-streamer/c", "d", 1, None, True])


@pytest.mark.slow
@settings(max_examples=25)  # each example starts a program
@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz"), inner)))
def test_files_are_found_at_any_depth_of_the_settings(value: object) -> None:
    rest = {
        "files": {},
        "credentials": {},
        "gate_timeout_s": 10,
        "journald_max_use": "",
        "lists": {},
        "device_id": "a",
        "firewall": False,
    }
    result = checked({"settings": {"section": {"key": value}}, **rest})
    named = set(re.findall(r'"(credential:[^"]*|/etc/[^"]*)"', json.dumps(value)))
    paths = {one.replace("credential:", "credentials/").replace("/etc/edge-streamer/", "") for one in named}
    assert result == {"faults": [], "missing": sorted(paths)}


def write_bundle(path: Path, *, changed: Mapping[str, bytes] | None = None, more: Sequence[str] = ()) -> Path:
    """A small bundle. `changed` files do not match the checksums; `more` are additional members."""
    files = {"edge-release": b"tool", "release.json": json.dumps(DESCRIPTION).encode()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    members = {**files, "SHA256SUMS": sums.encode(), **(changed or {})}
    with tarfile.open(path, "w") as archive:
        for name, content in [
            *((f"{TOP}/{name}", content) for name, content in members.items()),
            *((n, b"") for n in more),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_bundle_is_described_under_any_name(tmp_path: Path) -> None:
    done = run("read_bundle.py", str(write_bundle(tmp_path / "any name.tar")))
    assert done.returncode == 0, done.stderr
    expected = {"release": "1.0.0-abcd", "architecture": "arm64", "pythons": ["3.11"], "directory": TOP, "mb": 1}
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("changed", "more", "words"),
    [
        ({"edge-release": b"other tool"}, (), "is damaged (edge-release does not match SHA256SUMS)"),
        ({"release.json": b"{}"}, (), "is damaged (release.json does not match SHA256SUMS)"),
        ({"SHA256SUMS": b""}, (), "is damaged"),
        ({"SHA256SUMS": b"\xff"}, (), "is not a bundle"),
        ({}, (f"{TOP}/edge-release",), "edge-release is there twice"),
        ({}, (f"./{TOP}/x/../edge-release",), "edge-release is there twice"),
        ({}, ("elsewhere/file",), "it must hold one directory"),
        ({}, ("../file",), "it must hold one directory"),
    ],
)
def test_a_bundle_that_cannot_be_trusted_is_refused(
    tmp_path: Path, changed: dict[str, bytes], more: Sequence[str], words: str
) -> None:
    done = run("read_bundle.py", str(write_bundle(tmp_path / "bundle.tar", changed=changed, more=more)))
    assert (done.returncode, words in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr


def test_a_file_that_is_not_a_whole_archive_is_refused(tmp_path: Path) -> None:
    whole = write_bundle(tmp_path / "bundle.tar").read_bytes()
    for length in (0, 1, 511, 512, 700, 1024, 1600, 2200):
        (tmp_path / "part.tar").write_bytes(whole[:length])
        done = run("read_bundle.py", str(tmp_path / "part.tar"))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), (length, done.stderr)


def test_the_signature_is_verified_with_the_public_key(tmp_path: Path) -> None:
    for name in ("own", "other"):
        key = tmp_path / f"{name}.key"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", tmp_path / f"{name}.pub"], check=True)
    own, other = ((tmp_path / f"{name}.pub").read_text() for name in ("own", "other"))
    with tarfile.open(write_bundle(tmp_path / "unsigned.tar")) as archive:
        file = archive.extractfile(f"{TOP}/SHA256SUMS")
        assert file is not None
        (tmp_path / "sums").write_bytes(file.read())
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", f"{tmp_path}/own.key", "-rawin", "-in", f"{tmp_path}/sums"]
    signature = subprocess.run(sign, check=True, capture_output=True).stdout
    signed = write_bundle(tmp_path / "signed.tar", changed={"SHA256SUMS.sig": signature})
    for bundle, public_key, words in (
        (signed, own, ""),
        (signed, other, "the signature does not match"),
        (tmp_path / "unsigned.tar", own, "the bundle is not signed"),
        (signed, (tmp_path / "own.key").read_text(), "is not a public key in PEM"),
        (signed, "nonsense", "is not a public key in PEM"),
    ):
        done = run("read_bundle.py", str(bundle), stdin=public_key)
        assert (done.returncode, words in done.stderr) == (1 if words else 0, True), done.stderr
        assert "PRIVATE" not in done.stderr


def test_a_system_without_dpkg_is_described(tmp_path: Path) -> None:
    done = run("look.py", "python3-numpy", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert (described["architecture"], described["missing_packages"]) == ("unknown", ["python3-numpy"])
