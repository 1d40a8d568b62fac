"""Provisioning by claim: a device without a certificate obtains one from AWS IoT. Its key never leaves it.

Source: AWS IoT Core Developer Guide, "Provisioning by claim" and "Device provisioning MQTT API".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from edge.core.backoff import Backoff
from edge.errors import BrokerLost
from edge.mqtt.broker import Message
from edge.mqtt.device_certificate import OwnFiles, signing_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from edge.mqtt.device_certificate import AtomicFile
    from edge.mqtt.link import Link, OpenLink
    from edge.mqtt.settings import ClaimSettings, MqttSettings


log = logging.getLogger(__name__)

CREATE = "$aws/certificates/create-from-csr/json"
"""The topic of requests for a certificate. Answers arrive on topics below it."""

_ANSWER_TIMEOUT_S = 20.0
_ANSWER_LIMIT_BYTES = 32 * 1024
# Back-offs: first, longest and shortest wait. A refusal is likely to repeat.
_REFUSED_S = (60.0, 900.0, 30.0)
# Each of these attempts may leave a registered certificate that nobody uses: a few per day, without end.
_SPENT_S = (60.0, 86_400.0, 30.0)
_UNFIT_S = (7_200.0, 86_400.0, 3_600.0)
_SHOWN_CHARACTERS = 200


def register_topic(template: str) -> str:
    """The topic of requests to register the thing of the certificate."""
    return f"$aws/provisioning-templates/{template}/provision/json"


def answer_topics(request: str) -> tuple[str, str]:
    """The topics of the answers to a request: accepted, rejected."""
    return f"{request}/accepted", f"{request}/rejected"


def claim_client_id(device: str) -> str:
    """The client id of a claim. It differs from all device ids, which contain no colon."""
    return f"claim:{device}"


class NotProvisioned(BrokerLost):
    """The service was reached, but the device has no certificate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Refused(BrokerLost):
    """The service refused the request, and made nothing."""


class _Spent(BrokerLost):
    """A certificate may be registered that the device did not receive."""


class _Unfit(BrokerLost):
    """The answer does not fit this device. A retry is likely to get the same answer."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}. Correct this, then restart the service")


class Provisioning:
    """Obtains the device's certificate if there is none. An existing certificate with its key is never replaced.

    After an interruption the next attempt starts again with the same key. A certificate is stored after its thing is
    registered. If it cannot be stored, it stays in memory for the next attempt, since every further certificate would
    stay registered, too.

    Raises: ConfigInvalid: the certificate is missing and could not be stored.
    """

    def __init__(
        self, settings: MqttSettings, claim: ClaimSettings, device: str, atomic_file: Callable[[Path], AtomicFile]
    ) -> None:
        assert settings.cert_file is not None
        assert settings.key_file is not None
        self._claim = claim
        self._device = device
        # No session at the broker: it would deliver answers to an earlier attempt first.
        identity = {"cert_file": claim.cert_file, "key_file": claim.key_file, "session_expiry_s": 0}
        self._settings = settings.model_copy(update=identity)
        self._files = OwnFiles(settings.cert_file, settings.key_file, atomic_file)
        self._registered: list[x509.Certificate] = []
        self._backoffs = (
            (_Unfit, Backoff(*_UNFIT_S)),
            (_Spent, Backoff(*_SPENT_S)),
            (BrokerLost, Backoff(*_REFUSED_S)),
        )
        self._files.prepare()

    async def ensure(self, open_link: OpenLink) -> None:
        """Return when key and certificate are stored. Raises: BrokerLost: this attempt failed."""
        if self._files.complete:
            return
        key = await asyncio.to_thread(self._files.key)
        if self._registered and self._registered[0].public_key() == key.public_key():
            with self._backing_off():
                await asyncio.to_thread(self._files.store, self._registered)
            return
        dialogue = _Dialogue(self._settings.publish_timeout_s)
        try:
            link = await open_link(self._settings, claim_client_id(self._device), None, dialogue.receive)
        except BrokerLost as exc:
            raise BrokerLost(
                f"the device has no certificate yet; connecting with the claim certificate failed: {exc.message}"
            ) from exc
        try:
            with self._backing_off():
                # Only with a link, since every check writes to the disk.
                await asyncio.to_thread(self._files.try_room)
                self._registered = await self._negotiate(dialogue, link, key)
                await asyncio.to_thread(self._files.store, self._registered)
        finally:
            await link.close()

    @contextlib.contextmanager
    def _backing_off(self) -> Iterator[None]:
        """Translate a failure into NotProvisioned with the time of the next attempt."""
        try:
            yield
        except BrokerLost as exc:
            backoff = next(backoff for kind, backoff in self._backoffs if isinstance(exc, kind))
            wait_s = backoff.next_s(random.random())  # noqa: S311  jitter
            raise NotProvisioned(f"the device has no certificate yet: {exc.message}", wait_s) from exc
        self._registered = []
        for _, backoff in self._backoffs:
            backoff.reset()

    async def _negotiate(
        self, dialogue: _Dialogue, link: Link, key: ec.EllipticCurvePrivateKey
    ) -> list[x509.Certificate]:
        """Obtain the certificate, active and registered for this device, and its chain. Raises: BrokerLost."""
        register = register_topic(self._claim.template)
        await link.subscribe((*answer_topics(CREATE), *answer_topics(register)))
        serving = asyncio.create_task(link.serve(), name="claim-link")
        try:
            request = {"certificateSigningRequest": signing_request(key, self._device)}
            issued = await dialogue.ask(link, serving, CREATE, request, _Issued)
            certificates = _certificates(issued.certificate_pem, key)
            dialogue.secret = issued.certificate_ownership_token.get_secret_value()
            ownership = {
                "certificateOwnershipToken": dialogue.secret,
                "parameters": {**self._claim.parameters, "SerialNumber": self._device},
            }
            try:
                thing = await dialogue.ask(link, serving, register, ownership, _Registered)
            except _Refused:
                raise
            except BrokerLost as exc:
                raise _Spent(exc.message) from exc
            if thing.thing_name != self._device:
                named = dialogue.shown(thing.thing_name)
                raise _Unfit(f"the template names the thing {named!r}; it must be the device id")
            log.info("device certificate obtained id=%s", dialogue.shown(issued.certificate_id))
            return certificates
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            if not serving.cancelled():
                serving.exception()  # `ask` has raised it


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class _Issued(_Answer):
    certificate_id: str
    certificate_pem: str
    certificate_ownership_token: SecretStr


class _Registered(_Answer):
    thing_name: str


class _Rejection(_Answer):
    status_code: int | str = "?"
    error_code: str = "?"
    error_message: str = ""


_M = TypeVar("_M", bound=_Answer)


class _Dialogue:
    """Sends requests over one link, one at a time. `secret`: text that no error may repeat."""

    def __init__(self, publish_timeout_s: float) -> None:
        self.secret = ""
        self._publish_timeout_s = publish_timeout_s
        self._topics: tuple[str, ...] = ()
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def receive(self, message: Message) -> None:
        if message.topic in self._topics and not self._answer.done():
            self._answer.set_result(message)

    async def ask(
        self, link: Link, serving: asyncio.Task[None], topic: str, request: dict[str, Any], model: type[_M]
    ) -> _M:
        """Send a request and return its answer. Raises: BrokerLost: the link broke, or there is no usable answer."""
        self._topics = answer_topics(topic)
        self._answer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await link.publish(Message(topic, json.dumps(request).encode()))
        except TimeoutError as exc:
            raise BrokerLost("the broker did not acknowledge in time") from exc
        either: set[asyncio.Future[Any]] = {self._answer, serving}
        await asyncio.wait(either, timeout=_ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            return self._read(self._answer.result(), model)
        if serving.done():
            await serving
        raise BrokerLost(f"no answer on {topic}")

    def shown(self, said: str) -> str:
        """Text of the service without the secret, within bounds."""
        if self.secret:
            said = said.replace(self.secret, "...")
        return "".join(letter if letter.isprintable() else " " for letter in said[:_SHOWN_CHARACTERS])

    def _read(self, answer: Message, model: type[_M]) -> _M:
        # The error of the model would repeat the answer.
        unreadable = BrokerLost(f"the answer on {answer.topic} cannot be used")
        if len(answer.payload) > _ANSWER_LIMIT_BYTES:
            raise unreadable
        try:
            if answer.topic == self._topics[0]:
                return model.model_validate_json(answer.payload)
            said = _Rejection.model_validate_json(answer.payload)
        except ValidationError:
            raise unreadable from None
        words = self.shown(f"{said.status_code} {said.error_code}: {said.error_message}")
        raise _Refused(f"{answer.topic}: {words}")


def _certificates(pem: str, key: ec.EllipticCurvePrivateKey) -> list[x509.Certificate]:
    """Parse the chain. Raises: _Unfit: it is not readable, or its first certificate is for another key."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        public_key = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _Unfit("the issued certificate cannot be read") from None
    if public_key != key.public_key():
        raise _Unfit("the issued certificate is for another key")
    return certificates
