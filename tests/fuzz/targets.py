"""What an input is given to, by its first byte, and what has to hold whatever it is."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519

from edge.client import Signer
from edge.client.tokens import jwks
from edge.contract.codes import Code
from edge.contract.messages import OfferBody
from edge.core.authority import TOKEN_LIFETIME_LIMIT_S, read_claims
from edge.core.candidate import read_candidate
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.signalling.tokens import TokenKeys
from edge.streaming.ice_servers import read_ice_servers
from tests.fuzz.door import ALLOWED_HOSTS, NOW, TOPICS, Doors
from tests.fuzz.engine import Engine
from tests.fuzz.sdp import check_offer

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_S = 1.0
"""Of processor time, for one input: far over what the slowest takes on a slow machine."""
_MESSAGES = 30
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


class _Keys(TokenKeys):
    def _refresh(self) -> None:
        """The file is gone."""


class Targets:
    """The doors that an input may come to. `run` is what every fuzzer calls. `engine`: aiortc too, which is slow."""

    def __init__(self, *, engine: bool = False) -> None:
        self.doors = Doors()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "jwks.json"
            path.write_text(jwks(Signer(KEY, "one")))
            self._keys = _Keys(path)
        self._by_letter: dict[bytes, Callable[[bytes], None]] = {
            b"o": lambda data: self.doors.take(messages(data), authority=False),
            b"r": lambda data: self.doors.take(messages(data), authority=True),
            b"s": lambda data: check_offer(_text(data)),
            b"c": _candidate,
            b"i": _ice_servers,
            b"t": self._token,
            b"j": self._signed,
        }
        self.letters = b"".join(self._by_letter)
        self._engine = Engine() if engine else None
        if self._engine is not None:
            self._by_letter[b"e"] = self._engine.take

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.doors.close()
        if self._engine is not None:
            self._engine.close()

    def run(self, data: bytes) -> None:
        """Raises: anything: that is a finding."""
        letter = data[:1] if data[:1] in self._by_letter else self.letters[len(data) % len(self.letters) :][:1]
        begun_s = time.thread_time()
        self._by_letter[letter](data[1:])
        spent_s = time.thread_time() - begun_s
        assert spent_s < SLOW_S, f"{spent_s:.1f} s for one input"

    def _token(self, data: bytes) -> None:
        """A token as it comes."""
        try:
            claims = self._keys.claims(_text(data))
            read_claims(claims, "cam-1", NOW.timestamp())
        except Rejected as exc:
            assert exc.code in {Code.UNAUTHORIZED, Code.EXPIRED}

    def _signed(self, data: bytes) -> None:
        """Claims of any kind, signed."""
        token = jwt.api_jws.encode(data, KEY, "EdDSA", {"kid": "one"})
        try:
            found = read_claims(self._keys.claims(token), "cam-1", NOW.timestamp())
        except Rejected as exc:
            assert exc.code in {Code.UNAUTHORIZED, Code.EXPIRED}
            return
        assert -5 < found.expires_s - NOW.timestamp() <= TOKEN_LIFETIME_LIMIT_S + 5
        for name in (found.subject, found.id, found.client or "-"):
            assert 0 < len(name) <= 128
            assert name.isprintable()


def messages(data: bytes) -> list[Message]:
    """One message a line; `@TOPIC ` before it is a response topic of MQTT 5, with correlation data."""
    made = []
    for line in data.split(b"\n")[:_MESSAGES]:
        topic, _, payload = line[1:].partition(b" ") if line.startswith(b"@") else (b"", b"", line)
        correlation = topic or None
        made.append(Message(TOPICS.command, payload, response_topic=_text(topic) or None, correlation=correlation))
    return made


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _candidate(data: bytes) -> None:
    try:
        found = read_candidate(_text(data))
    except Rejected as exc:
        assert exc.code is Code.BAD_MESSAGE
        return
    if found is not None:
        line = f"candidate:{found.foundation} 1 udp {found.priority} {found.host} {found.port} typ {found.type}"
        assert read_candidate(line) == found
        assert line.isascii()


def _ice_servers(data: bytes) -> None:
    try:
        fields = json.loads(data)
        servers = OfferBody.model_validate({"sdp": "v=0", "ice_servers": fields}).ice_servers
    except (ValueError, RecursionError):
        return
    try:
        found = read_ice_servers(servers, ALLOWED_HOSTS)
    except Rejected as exc:
        assert exc.code in {Code.BAD_MESSAGE, Code.FORBIDDEN}
        assert len(exc.message) < 400
        return
    places = [(one.host, one.port) for one in found.stun] + [(one.host, one.port) for one in found.turn]
    assert all(host in ALLOWED_HOSTS and 0 < port < 65536 for host, port in places)
