"""The AsyncAPI document matches the code, the standard and its own examples."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from edge.contract.asyncapi import EXAMPLES, document, message_key
from edge.contract.codes import Code, EndReason
from edge.contract.events import EVENTS
from edge.contract.messages import BODIES, RESERVED
from edge.contract.replies import REPLIES, SESSION_MESSAGES
from edge.core.authority import PERMISSIONS
from tests.rigs.daemon import ROOT
from tests.rigs.documented import invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = ROOT / "docs" / "asyncapi.json"
OFFICIAL = ROOT / "tests" / "asyncapi" / "3.0.0.json"
examples: dict[str, Any] = json.loads(EXAMPLES.read_text())
made = document(examples)


def refs(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from refs(each)
    elif isinstance(node, list):
        for each in node:
            yield from refs(each)


def test_the_stored_document_matches_the_code() -> None:
    assert json.loads(KEPT.read_text()) == made, "python -m edge.contract.asyncapi > docs/asyncapi.json"


def test_the_document_is_valid_asyncapi() -> None:
    validator = jsonschema.Draft7Validator(json.loads(OFFICIAL.read_text()))
    assert [error.message for error in validator.iter_errors(made)] == []
    assert not validator.is_valid(made | {"channels": {"command": {"adress": "x"}}}), "it would be found"


def test_every_reference_resolves() -> None:
    for ref in set(refs(made)):
        node = made
        for step in ref.removeprefix("#/").split("/"):
            assert step in node, ref
            node = node[step]


def test_every_schema_is_valid() -> None:
    for schema in made["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("name", sorted(examples))
def test_every_example_matches_its_schema(name: str) -> None:
    topic, message = examples[name]["topic"], examples[name]["message"]
    assert invalid(made, topic, message) is None
    (shown,) = [
        each for each in made["components"]["messages"][message_key(topic, message)]["examples"] if each["name"] == name
    ]
    assert shown["payload"] == message


def test_invalid_messages_do_not_match() -> None:
    offer = examples["offer"]
    changes: list[dict[str, Any]] = [{"body": {}}, {"v": 2}, {"expires_at": None}, {"type": "session.dance"}]
    for change in changes:
        assert invalid(made, offer["topic"], offer["message"] | change)
    answer = examples["answer"]
    assert invalid(made, answer["topic"], answer["message"] | {"ok": False})
    assert invalid(made, answer["topic"], answer["message"] | {"body": {"session": "s-1"}})
    busy = examples["busy"]
    assert invalid(made, busy["topic"], busy["message"] | {"error": {"code": "tired", "message": ""}})


def test_every_message_has_an_example() -> None:
    without = {key for key, message in made["components"]["messages"].items() if "examples" not in message}
    assert without == {"event.camera.sd_failed", "event.settings.rolled_back"}, "these take an encoder that fails"


def test_every_command_is_listed_with_its_reply_and_permission() -> None:
    assert set(BODIES) == set(REPLIES)
    assert set(PERMISSIONS) == {*BODIES, *RESERVED}
    for kind in BODIES:
        operation = made["operations"][kind]
        assert operation["action"] == "receive"
        answers = [each["$ref"].rpartition("/")[2] for each in operation["reply"]["messages"]]
        assert answers == [f"reply.{REPLIES[kind].kind}", "reply.error"]
        assert operation["x-permission"] == {"scope": PERMISSIONS[kind].scope, "owner": PERMISSIONS[kind].owner}
    for kind in RESERVED:
        assert kind in made["channels"]["command"]["description"]
    sent = {each["$ref"].rpartition("/")[2] for each in made["operations"]["send.session"]["messages"]}
    assert sent == {f"reply.{kind}" for kind in SESSION_MESSAGES}


def test_every_code_and_reason_is_described() -> None:
    for name, values in (("Code", list(Code)), ("EndReason", list(EndReason))):
        schema = made["components"]["schemas"][name]
        assert schema["enum"] == values
        assert [line.split(": ")[0] for line in schema["description"].splitlines()] == [
            f"- {value}" for value in values
        ]


def published_events(source: str) -> Iterator[str]:
    """The types of the events that a module publishes: `publish_event("camera.lost", ...)`."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"publish_event", "_publish_event", "_publish_outcome"}
        ):
            words = ast.walk(node.args[0]) if node.args else ()
            yield from (str(word.value) for word in words if isinstance(word, ast.Constant))


def test_the_code_publishes_exactly_the_events_of_the_contract() -> None:
    sources = [path.read_text() for path in (ROOT / "edge").rglob("*.py")]
    assert {kind for source in sources for kind in published_events(source)} == set(EVENTS)
