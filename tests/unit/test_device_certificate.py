"""The files of a device's own key and certificate, also after a power cut."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge.errors import BrokerLost, ConfigInvalid
from edge.host.atomic_file import AtomicFile
from edge.mqtt.device_certificate import OwnFiles, signing_request
from tests.rigs.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

# From RFC 8410: a valid key of a kind that AWS IoT does not accept.
ED25519 = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return tmp_path / "above" / "own"


@pytest.fixture
def files(room: Path) -> OwnFiles:
    made = OwnFiles(room / "device.pem", room / "device.key", AtomicFile)
    made.prepare()
    return made


def certificate(directory: Path, key: ec.EllipticCurvePrivateKey) -> list[x509.Certificate]:
    request = x509.load_pem_x509_csr(signing_request(key, "cam-1").encode())
    return [x509.load_pem_x509_certificate(Authority(directory).sign(request).encode())]


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_a_key_is_made_once_and_only_the_daemon_can_read_it(files: OwnFiles, room: Path) -> None:
    assert not files.complete
    key = files.key()
    assert key.curve.name == "secp256r1"
    assert modes(room, room / "device.key") == [0o700, 0o600]
    assert files.key().private_numbers() == key.private_numbers()
    assert not files.complete


def test_key_and_certificate_are_complete(files: OwnFiles, room: Path, tmp_path: Path) -> None:
    (given,) = certificate(tmp_path, files.key())
    files.store([given])
    assert files.complete
    assert x509.load_pem_x509_certificate((room / "device.pem").read_bytes()) == given
    assert modes(room / "device.pem") == [0o600]


def test_half_written_files_of_a_power_cut_are_ignored(files: OwnFiles, room: Path, tmp_path: Path) -> None:
    for name in ("device.key.new", "device.pem.new"):
        (room / name).write_text("-----BEGIN")
        (room / name).chmod(0o644)
    assert not files.complete
    files.store(certificate(tmp_path, files.key()))
    assert files.complete
    assert sorted(path.name for path in room.iterdir()) == ["device.key", "device.pem"]
    assert modes(room / "device.key", room / "device.pem") == [0o600, 0o600]


def test_a_certificate_without_its_key_is_removed(files: OwnFiles, room: Path, tmp_path: Path) -> None:
    files.store(certificate(tmp_path, files.key()))
    (room / "device.key").unlink()
    assert not files.complete
    files.key()
    # Otherwise a power cut at this point would leave two files that do not match, and count as complete.
    assert not (room / "device.pem").exists()


@pytest.mark.parametrize("content", ["", "nonsense", ED25519])
def test_a_foreign_key_is_reported_and_not_replaced(files: OwnFiles, room: Path, content: str) -> None:
    key_file = room / "device.key"
    key_file.write_text(content)
    with pytest.raises(BrokerLost, match="remove it to get a new one") as caught:
        files.key()
    assert key_file.read_text() == content
    assert not content or content not in caught.value.message


def test_a_write_failure_is_reported(files: OwnFiles, room: Path, tmp_path: Path) -> None:
    key = files.key()
    (room / "device.pem.new").mkdir()
    with pytest.raises(BrokerLost, match=r"device.pem"):
        files.store(certificate(tmp_path, key))
    assert not files.complete
    (room / "device.key.new").mkdir()
    (room / "device.key").unlink()
    with pytest.raises(BrokerLost, match=r"device.key"):
        files.key()


def test_a_directory_that_others_can_read_is_rejected(room: Path, tmp_path: Path) -> None:
    room.mkdir(parents=True)
    room.chmod(0o755)
    with pytest.raises(ConfigInvalid, match=r"^mqtt.key_file: .*: the directory .* mode 700"):
        OwnFiles(room / "device.pem", room / "device.key", AtomicFile).prepare()
    assert modes(room) == [0o755]
    for name in ("device.pem", "device.key"):
        (room / name).write_text("written by an operator")
    OwnFiles(room / "device.pem", room / "device.key", AtomicFile).prepare()


@pytest.mark.parametrize("gone", [("device.pem",), ("device.pem", "device.key")])
def test_removed_files_are_not_made_again_where_others_can_read(room: Path, gone: tuple[str, ...]) -> None:
    room.mkdir(parents=True)
    room.chmod(0o755)
    for name in ("device.pem", "device.key"):
        (room / name).write_text("written by an operator")
    files = OwnFiles(room / "device.pem", room / "device.key", AtomicFile)
    files.prepare()
    for name in gone:
        (room / name).unlink()
    left = sorted(room.iterdir())
    with pytest.raises(BrokerLost, match=r"own: the directory must belong .* mode 700"):
        files.key()
    assert sorted(room.iterdir()) == left


def test_the_check_for_room_leaves_no_file(files: OwnFiles, room: Path) -> None:
    files.key()
    (room / "device.pem.new").write_text("-----BEGIN")
    files.try_room()
    assert [path.name for path in room.iterdir()] == ["device.key"]
    (room / "device.pem.new").mkdir()
    with pytest.raises(BrokerLost, match=r"device.pem"):
        files.try_room()


@pytest.mark.parametrize(("name", "words"), [("file", "Not a directory"), ("n" * 300, "File name too long")])
def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    room = tmp_path / name / "own"
    with pytest.raises(ConfigInvalid, match=f"^mqtt.key_file: .*: {words}"):
        OwnFiles(room / "device.pem", room / "device.key", AtomicFile).prepare()


def test_a_request_contains_the_name_and_the_public_key(files: OwnFiles) -> None:
    key = files.key()
    request = x509.load_pem_x509_csr(signing_request(key, "cam-1").encode())
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert request.subject.rfc4514_string() == "CN=cam-1"
    number = key.private_numbers().private_value.to_bytes(32, "big")
    assert number not in request.public_bytes(serialization.Encoding.DER)
