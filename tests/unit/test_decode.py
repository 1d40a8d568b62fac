"""Decoding commands, and refusing invalid ones with a code."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.codes import Code
from edge.contract.decode import read
from edge.contract.messages import BODIES, RESERVED, OfferBody, Reply
from edge.errors import Rejected

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
OFFER: dict[str, Any] = {
    "v": 1,
    "id": "c-1",
    "type": "session.offer",
    "expires_at": "2026-11-20T12:00:30Z",
    "reply_to": "edge/v1/cam-1/reply/bff-7",
    "token": "eyJhbGciOi.secret.signature",
    "body": {"sdp": "v=0"},
}


def code_of(payload: bytes) -> Code:
    with pytest.raises(Rejected) as caught:
        read(payload).command(NOW)
    assert "secret" not in caught.value.message, "a refusal never repeats what it was given"
    return caught.value.code


def changed(**fields: Any) -> bytes:
    return json.dumps({**OFFER, **fields}).encode()


def test_the_example_of_the_contract_is_decoded() -> None:
    command, body = read(changed()).command(NOW)
    assert (command.id, command.type) == ("c-1", "session.offer")
    assert isinstance(body, OfferBody)
    assert (body.trickle, body.quality, body.audio) == (True, "auto", "off")
    assert "secret" not in repr(command)


def test_unknown_fields_are_ignored() -> None:
    read(changed(colour="red", body={"sdp": "v=0", "later": {}})).command(NOW)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", Code.BAD_MESSAGE),
        (b"{", Code.BAD_MESSAGE),
        (b"\xff\xfe", Code.BAD_MESSAGE),
        (b"[1]", Code.BAD_MESSAGE),
        (b"[" * 30_000, Code.BAD_MESSAGE),
        (changed(v=2), Code.UNSUPPORTED_VERSION),
        (changed(v="1"), Code.BAD_MESSAGE),
        (changed(v=True), Code.BAD_MESSAGE),
        (changed().decode().encode("utf-16"), Code.BAD_MESSAGE),
        (changed().decode().encode("utf-32-le"), Code.BAD_MESSAGE),
        (changed()[:-1] + b', "type": "stream.stop"}', Code.BAD_MESSAGE),
        (changed()[:-1] + b', "t\\u0079pe": "session.offer"}', Code.BAD_MESSAGE),
        (changed(body=0).replace(b"0}", b'{"sdp": "v=0", "sdp": "v=0"}}'), Code.BAD_MESSAGE),
        (changed(later=0).replace(b": 0}", b": NaN}"), Code.BAD_MESSAGE),
        (changed(expires_at="\uff12\uff10\uff12\uff16-11-20T12:00:30Z"), Code.BAD_MESSAGE),
        (changed(type="camera.snapshot", body={"width": "\u0666\u0664\u0660"}), Code.BAD_MESSAGE),
        (changed(type="session.candidate", body={"session": "s\u0661", "candidate": None}), Code.BAD_MESSAGE),
        (changed(id=""), Code.BAD_MESSAGE),
        (changed(id="x" * 129), Code.BAD_MESSAGE),
        (changed(type="session.secret"), Code.BAD_MESSAGE),
        (changed(expires_at="soon"), Code.BAD_MESSAGE),
        (changed(expires_at="2026-11-20T12:00:30"), Code.BAD_MESSAGE),
        (changed(expires_at="2026-11-20T12:00:00Z"), Code.EXPIRED),
        (changed(expires_at="2026-11-20T12:05:01Z"), Code.BAD_MESSAGE),
        (changed(body={}), Code.BAD_MESSAGE),
        (changed(body={"sdp": "v=0", "viewer": "\ud800"}), Code.BAD_MESSAGE),
        (changed(body={"sdp": "v=0", "session": "../secret"}), Code.BAD_MESSAGE),
        (changed(body={"sdp": "v=0", "quality": "secret"}), Code.BAD_MESSAGE),
        (changed(body={"sdp": "s" * 33_000}), Code.TOO_LARGE),
        (changed(body={"sdp": "s" * 200_000}), Code.TOO_LARGE),
    ],
)
def test_invalid_messages_are_refused(payload: bytes, code: Code) -> None:
    assert code_of(payload) is code


@pytest.mark.parametrize("field", ["v", "id", "type", "expires_at"])
def test_each_missing_field_is_named(field: str) -> None:
    fields = {key: value for key, value in OFFER.items() if key != field}
    with pytest.raises(Rejected, match=field):
        read(json.dumps(fields).encode()).command(NOW)


def test_reserved_commands_are_unsupported() -> None:
    for kind in RESERVED:
        assert code_of(changed(type=kind)) is Code.UNSUPPORTED
    assert not RESERVED & BODIES.keys()


def test_an_id_and_a_reply_topic_are_read_even_from_a_bad_message() -> None:
    received = read(changed(v=9, expires_at=None))
    assert (received.id, received.reply_to) == ("c-1", "edge/v1/cam-1/reply/bff-7")


@given(st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(payload: bytes) -> None:
    received = read(payload)
    assert isinstance(received.id, str)
    with pytest.raises(Rejected):
        received.command(NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional={key: JSON | st.just(value) for key, value in OFFER.items()}), st.integers(0, 90)
)
def test_any_fields_are_decoded_or_refused(fields: dict[str, Any], later_s: int) -> None:
    try:
        command, body = read(json.dumps(fields).encode()).command(NOW + timedelta(seconds=later_s))
    except Rejected:
        return
    assert command.type in BODIES
    assert isinstance(body, BODIES[command.type])


def test_an_error_reply_has_the_form_of_the_contract() -> None:
    text = {"code": "busy", "message": "5 of 5 viewers are connected", "retry_after_s": 20}
    reply = Reply.model_validate({"v": 1, "id": "c-1", "type": "error", "ok": False, "error": text})
    assert reply.error is not None
    assert reply.error.code is Code.BUSY
