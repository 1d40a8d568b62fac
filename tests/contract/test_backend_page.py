"""The page for backends matches the messages of a real device and the code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.asyncapi import EXAMPLES, document, message_key
from edge.contract.events import EVENTS
from edge.contract.messages import BODIES, RESERVED, Command, Event, Offline, Reply, Status, Telemetry
from edge.contract.replies import REPLIES, SESSION_MESSAGES
from edge.contract.shadow import Reported
from edge.core.authority import PERMISSIONS
from tests.rigs.backend_page import PAGE, PAGES, page
from tests.rigs.backend_story import TOPICS, record_story
from tests.rigs.documented import invalid

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from edge.core.authority import Permission

SHADOW = TOPICS.shadow(at_aws=False)
REGENERATE = "python -m tests.rigs.backend_story, then python -m edge.contract.asyncapi > docs/asyncapi.json"
_STATES: dict[str, type[BaseModel]] = {"status": Status, "status.offline": Offline, "telemetry": Telemetry}
text = PAGE.read_text()
examples: dict[str, Any] = json.loads(EXAMPLES.read_text())


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first heading is `first`."""
    rows = text[text.index(f"| {first} |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_match_the_recording_and_the_code(path: Path) -> None:
    shown = path.read_text()
    assert page(shown, examples) == shown, REGENERATE
    fences = len(re.findall(r"^```json", shown, re.MULTILINE))
    assert fences == len(re.findall(r"<!-- examples: [\w ]+ -->\n```json", shown)) > 1


def test_the_page_lists_the_commands_of_the_code() -> None:
    rows = table("command")
    assert [named(row[0]) for row in rows] == [[kind] for kind in BODIES]
    for (kind, body), (_, who_may, fields, reply) in zip(BODIES.items(), rows, strict=True):
        assert named(reply)[0] == REPLIES[kind].kind
        assert who_may == described(PERMISSIONS[kind])
        if kind != "camera.set":  # another page lists its controls
            ranges = {"hd", "sd"} if kind == "stream.stop" else set()
            assert set(body.model_fields) - ranges <= set(named(fields)), kind
    for kind in RESERVED:
        assert f"`{kind}`" in text


def described(permission: Permission) -> str:
    return " or ".join(
        [*(["owner"] if permission.owner else []), *([f"`{permission.scope}`"] if permission.scope else [])]
    )


def test_the_page_lists_the_events_of_the_code() -> None:
    shown = {kind: set(named(fields)) for kinds, fields, _ in table("event") for kind in named(kinds)}
    assert shown == {kind: set(body.model_fields) for kind, body in EVENTS.items()}


@pytest.mark.slow
async def test_a_real_device_sends_exactly_the_examples(tmp_path: Path) -> None:
    story = await record_story(tmp_path)
    assert story.examples == examples, REGENERATE
    made = document(examples)
    answered: set[str] = set()
    kinds: dict[str, str] = {}
    for message in story.messages:
        fields = json.loads(message.payload)
        if message.topic == TOPICS.command:
            kinds[fields["id"]] = fields["type"]
            if fields["type"] in BODIES and fields.get("body", {}).get("quality") != "best":
                assert invalid(made, message.topic, fields) is None
                Command.model_validate(fields)
            continue
        assert invalid(made, message.topic, fields) is None
        if message.topic == SHADOW.delta:
            continue
        assert without_nulls(round_trip(message.topic, fields)) == without_nulls(fields), (
            "nothing but what the models have"
        )
        if fields.get("ok") and fields["id"] in kinds:
            assert fields["type"] == REPLIES[kinds[fields["id"]]].kind
            answered.add(kinds[fields["id"]])
    assert answered == set(BODIES)


def round_trip(topic: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The message after a round trip through the models of the contract."""
    if (key := message_key(topic, fields)) in _STATES:
        return dumped(_STATES[key], fields)
    if topic == SHADOW.update:
        return {"state": {"reported": dumped(Reported, fields["state"]["reported"])}}
    if topic == TOPICS.event:
        return dumped(Event, fields) | {"body": dumped(EVENTS[fields["type"]], fields["body"])}
    written = dumped(Reply, fields)
    if fields.get("body") is None:
        return written
    models = {reply.kind: reply.body for reply in REPLIES.values() if reply.body} | SESSION_MESSAGES
    return written | {"body": dumped(models[fields["type"]], fields["body"])}


def dumped(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = model.model_validate(fields).model_dump(mode="json")
    return written


def without_nulls(fields: dict[str, Any]) -> Any:
    """The message without null fields, which mean the same as missing ones."""
    return json.loads(json.dumps(fields), object_hook=lambda each: {k: v for k, v in each.items() if v is not None})
