"""Provisioning by claim: a device without a certificate gets one of AWS IoT, for a key that never leaves it.

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
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric import ec

    from edge.mqtt.link import Link, OpenLink
    from edge.mqtt.settings import ClaimSettings, MqttSettings


log = logging.getLogger(__name__)

CREATE = "$aws/certificates/create-from-csr/json"
"""The topic of requests for a certificate. Answers come below it, as for the next."""

_ANSWER_S = 20.0
_ANSWER_LIMIT_BYTES = 32 * 1024
# First, longest and least. What the service refuses it mostly refuses again.
_REFUSED_S = (60.0, 900.0, 30.0)
# Each of these tries may leave a registered certificate that nobody has: few a day, and no end of them.
_SPENT_S = (60.0, 86_400.0, 30.0)
_UNFIT_S = (7_200.0, 86_400.0, 3_600.0)
_SHOWN = 200


def register_topic(template: str) -> str:
    """The topic of requests to be made the thing that the certificate is for."""
    return f"$aws/provisioning-templates/{template}/provision/json"


def answer_topics(request: str) -> tuple[str, str]:
    """Where a request is answered: when it is accepted, and when not."""
    return f"{request}/accepted", f"{request}/rejected"


def claim_client_id(device: str) -> str:
    """No device's own: those have no colon."""
    return f"claim:{device}"


class NotProvisioned(BrokerLost):
    """The service was reached and gave no certificate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Refused(BrokerLost):
    """The service said no: nothing was made."""


class _Spent(BrokerLost):
    """A certificate may be registered that did not come."""


class _Unfit(BrokerLost):
    """What came is not for this device: asked again, it mostly comes again."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}. A person has to mend that, and then restart this device")


class Provisioning:
    """Gets the device's own certificate where there is none. One with its key is never replaced, whatever it is worth.

    Interrupted, the next try begins anew with the same key: the certificate is kept only when its thing is registered.
    One that is registered and cannot be kept is held until it can: each further one would stay registered, too.

    Raises: ConfigInvalid: it has to be got and cannot be kept.
    """

    def __init__(self, settings: MqttSettings, claim: ClaimSettings, device: str) -> None:
        assert settings.cert_file is not None
        assert settings.key_file is not None
        self._claim = claim
        self._device = device
        # The claim leaves nothing with the broker: answers to an earlier try would come first.
        identity = {"cert_file": claim.cert_file, "key_file": claim.key_file, "session_expiry_s": 0}
        self._settings = settings.model_copy(update=identity)
        self._files = OwnFiles(settings.cert_file, settings.key_file)
        self._registered: list[x509.Certificate] = []
        self._backoffs = (
            (_Unfit, Backoff(*_UNFIT_S)),
            (_Spent, Backoff(*_SPENT_S)),
            (BrokerLost, Backoff(*_REFUSED_S)),
        )
        self._files.prepare()

    async def ensure(self, open_link: OpenLink) -> None:
        """Come back with key and certificate on disk. Raises: BrokerLost: not this time."""
        if self._files.complete:
            return
        key = await asyncio.to_thread(self._files.key)
        if self._registered and self._registered[0].public_key() == key.public_key():
            with self._backing_off():
                await asyncio.to_thread(self._files.keep, self._registered)
            return
        dialogue = _Dialogue(self._settings.publish_timeout_s)
        try:
            link = await open_link(self._settings, claim_client_id(self._device), None, dialogue.receive)
        except BrokerLost as exc:
            raise BrokerLost(f"no certificate of its own yet, connecting by the claim's: {exc.message}") from exc
        try:
            with self._backing_off():
                # Not before there is a link: it is written at each try.
                await asyncio.to_thread(self._files.try_room)
                self._registered = await self._negotiate(dialogue, link, key)
                await asyncio.to_thread(self._files.keep, self._registered)
        finally:
            await link.close()

    @contextlib.contextmanager
    def _backing_off(self) -> Iterator[None]:
        """At its end there is a certificate, or else NotProvisioned says when to try again."""
        try:
            yield
        except BrokerLost as exc:
            backoff = next(backoff for kind, backoff in self._backoffs if isinstance(exc, kind))
            wait_s = backoff.next_s(random.random())  # noqa: S311  jitter
            raise NotProvisioned(f"no certificate of its own yet: {exc.message}", wait_s) from exc
        self._registered = []
        for _, backoff in self._backoffs:
            backoff.reset()

    async def _negotiate(
        self, dialogue: _Dialogue, link: Link, key: ec.EllipticCurvePrivateKey
    ) -> list[x509.Certificate]:
        """The certificate, active and of this device, and what else came with it. Raises: BrokerLost."""
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
                raise _Unfit(f"the template names the thing {named!r}; it has to be the device's id")
            log.info("the device has a certificate of its own: %s", dialogue.shown(issued.certificate_id))
            return certificates
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            if not serving.cancelled():
                serving.exception()  # what was asked has told it


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
    """Requests over one link, one at a time. `secret`: what no error may repeat."""

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
        """Raises: BrokerLost: the link broke, or there is no answer, or none that can be used."""
        self._topics = answer_topics(topic)
        self._answer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await link.publish(Message(topic, json.dumps(request).encode()))
        except TimeoutError as exc:
            raise BrokerLost("the broker did not acknowledge in time") from exc
        either: set[asyncio.Future[Any]] = {self._answer, serving}
        await asyncio.wait(either, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            return self._read(self._answer.result(), model)
        if serving.done():
            await serving
        raise BrokerLost(f"nothing answers on {topic}")

    def shown(self, said: str) -> str:
        """What a service said, as far as it may be repeated."""
        if self.secret:
            said = said.replace(self.secret, "...")
        return "".join(letter if letter.isprintable() else " " for letter in said[:_SHOWN])

    def _read(self, answer: Message, model: type[_M]) -> _M:
        # The model's own words would repeat what it could not read.
        unreadable = BrokerLost(f"what came on {answer.topic} cannot be used")
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
    """Raises: _Unfit: they are none, or the first is for another key."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        public_key = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _Unfit("the certificate that came cannot be read") from None
    if public_key != key.public_key():
        raise _Unfit("the certificate that came is for another key")
    return certificates
