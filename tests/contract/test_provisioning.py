"""Provisioning by claim with both clients. mosquitto gives the claim the same rights as AWS IoT."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.errors import BrokerLost
from edge.host.atomic_file import AtomicFile
from edge.mqtt import provisioning
from edge.mqtt.broker import Broker, Message
from edge.mqtt.factory import make_broker
from edge.mqtt.provisioning import CREATE
from edge.mqtt.settings import ClaimSettings, MqttSettings
from tests.rigs.aws_provisioning import REGISTER, TEMPLATE, AwsProvisioning, accepted, claim_broker, rejected
from tests.rigs.certificates import Authority
from tests.rigs.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.rigs.mosquitto import Mosquitto

    Fields = dict[str, Any]


class Device:
    """A device's link to the broker, and its files."""

    def __init__(self, directory: Path, broker: Mosquitto, authority: Authority, client: str) -> None:
        self.cert_file, self.key_file = directory / "own" / "device.pem", directory / "own" / "device.key"
        cert_file, key_file = authority.issue("claim")
        self.settings = MqttSettings(
            **broker.settings(ca_file=authority.ca_file, client=client, reconnect_cap_s=0.5, connect_timeout_s=2),
            cert_file=self.cert_file,
            key_file=self.key_file,
            claim=ClaimSettings(template=TEMPLATE, cert_file=cert_file, key_file=key_file, parameters={"Site": "roof"}),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Broker]:
        broker = make_broker(
            self.settings,
            "cam-1",
            ("edge/v1/cam-1/command",),
            Message("edge/v1/cam-1/status", b""),
            atomic_file=AtomicFile,
        )
        task = asyncio.create_task(broker.run(asyncio.Event()))
        try:
            yield broker
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def broker(tmp_path: Path, authority: Authority) -> AsyncIterator[Mosquitto]:
    made = claim_broker(tmp_path, authority)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def service(broker: Mosquitto, authority: Authority) -> AsyncIterator[AwsProvisioning]:
    async with AwsProvisioning(broker, authority) as made:
        yield made


@pytest.fixture(params=["aws", pytest.param("paho", marks=pytest.mark.slow)])
def device(request: pytest.FixtureRequest, tmp_path: Path, broker: Mosquitto, authority: Authority) -> Device:
    return Device(tmp_path, broker, authority, request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_REFUSED_S", "_SPENT_S", "_UNFIT_S"):
        monkeypatch.setattr(provisioning, name, (0.1, 0.1, 0.1))


async def until(true: Callable[[], object], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)


def waits_s(caplog: pytest.LogCaptureFixture, words: str) -> list[float]:
    """The waits that the link logged together with these words."""
    lines = [re.search(r"retry_s=([\d.]+)", message) for message in caplog.messages if words in message]
    return [float(line[1]) for line in lines if line]


async def test_the_first_start_obtains_a_certificate_that_later_starts_use(
    device: Device, service: AwsProvisioning, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for _ in range(2):
        async with device.running() as link:
            await until(lambda: link.connected)
            # The broker's access list allows this to the certificate of cam-1 only.
            await link.publish(Message("edge/v1/cam-1/event", b"hello"))
    assert [message.topic for message in service.received] == [CREATE, REGISTER]
    assert service.requests(REGISTER)[0]["parameters"] == {"SerialNumber": "cam-1", "Site": "roof"}
    files = (device.cert_file, device.key_file)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (device.cert_file.parent, *files)] == [0o700, 0o600, 0o600]
    assert sorted(device.cert_file.parent.iterdir()) == sorted(files)

    key = serialization.load_pem_private_key(device.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert (key.curve.name, service.things) == ("secp256r1", {"cam-1": key.public_key()})
    sent = b"".join(message.payload for message in service.received) + caplog.text.encode()
    number = key.private_numbers().private_value
    for secret in (*device.key_file.read_bytes().splitlines()[1:-1], f"{number:x}".encode(), str(number).encode()):
        assert secret not in sent
    assert service.tokens[0] not in caplog.text


async def test_a_claim_has_no_other_rights(device: Device) -> None:
    claim = device.settings.claim
    assert claim is not None
    # A thief of the claim who pretends to be a device.
    stolen = device.settings.model_copy(update={"cert_file": claim.cert_file, "key_file": claim.key_file})
    device.settings = stolen.model_copy(update={"claim": None, "version": "5"})
    others = ("edge/v1/cam-1/status", "edge/v1/cam-2/command", f"{CREATE}/accepted", f"{REGISTER}s")
    async with device.running() as link:
        await until(lambda: link.connected)
        for topic in others:
            with pytest.raises(BrokerLost, match=r"(?i)not authorized"):
                await link.publish(Message(topic, b"x"))


def another_key(fields: Fields) -> tuple[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    given = x509.load_pem_x509_certificate(fields["certificatePem"].encode())
    builder = x509.CertificateBuilder(
        given.issuer, given.subject, key.public_key(), 1, given.not_valid_before_utc, given.not_valid_after_utc
    )
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    return accepted({**fields, "certificatePem": pem})


CASES: list[tuple[str, Callable[[Fields], tuple[str, bytes] | None], str]] = [
    (
        CREATE,
        lambda _: rejected(429, "Throttled", "slow\ndown"),
        "create-from-csr/json/rejected: 429 Throttled: slow down",
    ),
    (CREATE, lambda _: ("rejected", b"\xff"), "create-from-csr/json/rejected cannot be used"),
    (CREATE, lambda _: ("accepted", b"{}"), "create-from-csr/json/accepted cannot be used"),
    (CREATE, lambda fields: accepted({**fields, "more": "x" * 40_000}), "/accepted cannot be used"),
    (CREATE, lambda fields: accepted({**fields, "certificatePem": "none"}), "the issued certificate cannot be read"),
    (CREATE, another_key, "the issued certificate is for another key"),
    (CREATE, lambda _: None, f"no answer on {CREATE}"),
    (REGISTER, lambda _: rejected(400, "AccessDenied", "no such device"), "rejected: 400 AccessDenied: no such device"),
    (REGISTER, lambda _: accepted({"thingName": "cam-2"}), "names the thing 'cam-2'; it must be the device id"),
    (REGISTER, lambda _: ("accepted", b"[" * 30_000), "provision/json/accepted cannot be used"),
    (REGISTER, lambda _: None, f"no answer on {REGISTER}"),
]


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_unusable_answers_are_reported_and_not_stored(
    device: Device, service: AwsProvisioning, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provisioning, "_ANSWER_TIMEOUT_S", 1.0)
    caplog.set_level("DEBUG")
    async with device.running() as link:
        for topic, twist, words in CASES:
            service.overrides = {topic: twist}
            await until(lambda words=words: link.error and words in link.error)  # type: ignore[misc]
            assert not device.cert_file.exists()
        # The service repeats the secret.
        service.overrides = {REGISTER: lambda _: rejected(400, "Bad", f"the token {service.tokens[-1]} is bad")}
        await until(lambda: link.error and "the token ... is bad" in link.error)
        service.overrides = {}
        await until(lambda: link.connected)
    assert len(set(service.keys())) == 1
    assert not [token for token in service.tokens if token in caplog.text]


async def test_a_refused_request_is_retried_much_later(
    device: Device, service: AwsProvisioning, caplog: pytest.LogCaptureFixture
) -> None:
    service.overrides = {CREATE: lambda _: rejected(403, "AccessDenied", "no")}
    async with device.running() as link:
        await until(lambda: link.error and "403" in link.error)
    (wait_s,) = waits_s(caplog, "403")
    assert 30 <= wait_s <= 60


@pytest.mark.parametrize(
    ("topic", "twist"), [(REGISTER, lambda _: accepted({"thingName": "cam-2"})), (CREATE, another_key)]
)
async def test_an_answer_for_another_device_is_reported_and_not_retried_for_hours(
    device: Device,
    service: AwsProvisioning,
    caplog: pytest.LogCaptureFixture,
    topic: str,
    twist: Callable[[Fields], tuple[str, bytes]],
) -> None:
    service.overrides = {topic: twist}
    async with device.running() as link:
        await until(lambda: link.error and "Correct this, then restart the service" in link.error)
    (wait_s,) = waits_s(caplog, "Correct this, then restart the service")
    assert 3_600 <= wait_s <= 7_200
    assert len(service.requests(CREATE)) == 1
    assert not device.cert_file.exists()


def no_room_once_registered(device: Device, service: AwsProvisioning) -> Path:
    """An obstacle at the path of the certificate."""
    in_the_way = device.cert_file.with_name("device.pem.new")

    def register(fields: Fields) -> tuple[str, bytes]:
        in_the_way.mkdir()
        return accepted(fields)

    service.overrides = {REGISTER: register}
    return in_the_way


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_a_registered_certificate_stays_in_memory_until_it_can_be_stored(
    device: Device, service: AwsProvisioning, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    in_the_way = no_room_once_registered(device, service)
    async with device.running() as link:
        await until(lambda: len(waits_s(caplog, "device.pem.new: ")) > 2)
        in_the_way.rmdir()
        await until(lambda: link.connected)
    assert [message.topic for message in service.received] == [CREATE, REGISTER]


@pytest.mark.usefixtures("impatient")
async def test_a_new_key_does_not_get_the_certificate_in_memory(
    device: Device, service: AwsProvisioning, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = no_room_once_registered(device, service)
    async with device.running() as link:
        await until(lambda: waits_s(caplog, "device.pem.new: "))
        service.overrides = {}
        device.key_file.unlink()
        in_the_way.rmdir()
        await until(lambda: link.connected)
    assert len(set(service.keys())) == len(service.requests(REGISTER)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_no_certificate_is_requested_that_could_not_be_stored(
    device: Device, service: AwsProvisioning, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    in_the_way = device.cert_file.with_name("device.pem.new")
    in_the_way.mkdir(parents=True)
    in_the_way.parent.chmod(0o700)
    async with device.running() as link:
        await until(lambda: len(waits_s(caplog, "device.pem.new: ")) > 2)
        assert not service.received
        in_the_way.rmdir()
        await until(lambda: link.connected)


@pytest.mark.parametrize("gone", ["cert_file", "key_file"])
async def test_removed_files_are_obtained_again_at_the_next_connection(
    device: Device, service: AwsProvisioning, broker: Mosquitto, gone: str
) -> None:
    async with TcpProxy(broker.port) as way:
        device.settings = device.settings.model_copy(update={"port": way.port})
        async with device.running() as link:
            await until(lambda: link.connected)
            getattr(device, gone).unlink()
            # The link stays open.
            await link.publish(Message("edge/v1/cam-1/event", b"hello"))
            assert len(service.received) == 2
            await way.cut()
            await until(lambda: len(service.received) == 4 and link.connected)
    assert [message.topic for message in service.received] == [CREATE, REGISTER] * 2
    assert len(set(service.keys())) == (1 if gone == "cert_file" else 2)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_provisioning_continues_after_a_broker_failure(
    device: Device, service: AwsProvisioning, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioning, "_ANSWER_TIMEOUT_S", 2.0)  # the device may reconnect before the service
    service.overrides = {REGISTER: lambda _: None}
    async with device.running() as link:
        await until(lambda: service.requests(REGISTER))
        broker.kill()
        await until(lambda: link.error and "connecting with the claim certificate failed: " in link.error)
        assert link.error is not None
        assert "connection refused" in link.error
        service.overrides = {}
        broker.start()
        await until(lambda: link.connected)
    assert len(set(service.keys())) == 1


async def test_missing_and_refused_claims_are_reported(device: Device, tmp_path: Path, authority: Authority) -> None:
    claim = device.settings.claim
    assert claim is not None
    (tmp_path / "other").mkdir()
    foreign = dict(
        zip(("cert_file", "key_file"), Authority(tmp_path / "other", "other-ca").issue("claim"), strict=True)
    )
    for change, words in (({"cert_file": tmp_path / "none.pem"}, "none.pem"), (foreign, "unknown ca")):
        device.settings = device.settings.model_copy(update={"claim": claim.model_copy(update=change)})
        async with device.running() as link:
            await until(lambda words=words: link.error and words in link.error)  # type: ignore[misc]
            assert "connecting with the claim certificate failed: " in str(link.error)


async def test_a_refused_certificate_is_not_replaced(device: Device, service: AwsProvisioning, tmp_path: Path) -> None:
    async with device.running() as link:
        await until(lambda: link.connected)
    (tmp_path / "other").mkdir()
    cert_file, key_file = Authority(tmp_path / "other", "other-ca").issue("cam-1")
    device.cert_file.write_bytes(cert_file.read_bytes())
    device.key_file.write_bytes(key_file.read_bytes())
    async with device.running() as link:
        await until(lambda: link.error and "unknown ca" in link.error)
        with pytest.raises(BrokerLost):
            await link.publish(Message("edge/v1/cam-1/event", b"hello"))
    assert len(service.received) == 2
    # The only way to a new certificate.
    device.cert_file.unlink()
    async with device.running() as link:
        await until(lambda: link.connected)
    assert len(service.received) == 4
    assert json.loads(service.received[2].payload)
