"""Pass an input to the target that its first byte names, and check the invariants."""

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
from edge.core.candidate import read_candidate, read_local_name
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.signalling.tokens import TokenKeys
from edge.streaming.ice_servers import USUAL_PORTS, read_ice_servers
from tests.fuzz.engine import Engine
from tests.fuzz.mqtt_commands import ALLOWED_HOSTS, NOW, TOPICS, CommandHarness
from tests.fuzz.sdp import check_offer

if TYPE_CHECKING:
    from collections.abc import Callable

INPUT_LIMIT_S = 1.0
"""Limit of processor time for one input, far above the slowest input on a slow machine."""
_MESSAGE_LIMIT = 30
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


class _Keys(TokenKeys):
    def _refresh(self) -> None:
        """The temporary file of the keys is already deleted."""


class Targets:
    """The targets of an input. Every fuzzer calls `run`. `engine`: include aiortc, which is slow."""

    def __init__(self, *, engine: bool = False) -> None:
        self.commands = CommandHarness()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "jwks.json"
            path.write_text(jwks(Signer(KEY, "one")))
            self._keys = _Keys(path)
        self._by_letter: dict[bytes, Callable[[bytes], None]] = {
            b"o": lambda data: self.commands.deliver(messages(data), authority=False),
            b"r": lambda data: self.commands.deliver(messages(data), authority=True),
            b"s": lambda data: check_offer(_text(data)),
            b"c": _candidate,
            b"i": _ice_servers,
            b"t": self._token,
            b"j": self._signed,
        }
        self.letters = b"".join(self._by_letter)
        self._engine = Engine() if engine else None
        if self._engine is not None:
            self._by_letter[b"e"] = self._engine.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.commands.close()
        if self._engine is not None:
            self._engine.close()

    def run(self, data: bytes) -> None:
        """Run one input. Raises: any exception is a finding."""
        letter = data[:1] if data[:1] in self._by_letter else self.letters[len(data) % len(self.letters) :][:1]
        started_s = time.thread_time()
        self._by_letter[letter](data[1:])
        cpu_s = time.thread_time() - started_s
        assert cpu_s < INPUT_LIMIT_S, f"{cpu_s:.1f} s for one input"

    def _token(self, data: bytes) -> None:
        """Read an arbitrary token."""
        try:
            claims = self._keys.claims(_text(data))
            read_claims(claims, "cam-1", NOW.timestamp())
        except Rejected as exc:
            assert exc.code in {Code.UNAUTHORIZED, Code.EXPIRED}

    def _signed(self, data: bytes) -> None:
        """Read arbitrary claims with a valid signature."""
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
    """Read one message per line; a prefix `@TOPIC ` is an MQTT 5 response topic, with correlation data."""
    found = []
    for line in data.split(b"\n")[:_MESSAGE_LIMIT]:
        topic, _, payload = line[1:].partition(b" ") if line.startswith(b"@") else (b"", b"", line)
        correlation = topic or None
        found.append(Message(TOPICS.command, payload, response_topic=_text(topic) or None, correlation=correlation))
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _candidate(data: bytes) -> None:
    if (name := read_local_name(_text(data))) is not None:
        assert name.name.isascii()
        assert name.name.endswith(".local")
        assert name.at("192.0.2.9") is not None
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
    endpoints = [(one.host, one.port) for one in found.stun] + [(one.host, one.port) for one in found.turn]
    assert all(host in ALLOWED_HOSTS and port in USUAL_PORTS for host, port in endpoints)
