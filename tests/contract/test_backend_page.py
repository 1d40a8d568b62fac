"""The page for backends: it shows what a real device and its backend say, and its tables are those of the code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.asyncapi import EXAMPLES, document
from edge.contract.events import EVENTS
from edge.contract.messages import BODIES, RESERVED, Command, Event, Reply, Status, Telemetry
from edge.contract.replies import REPLIES, SESSION_MESSAGES
from edge.contract.shadow import Reported
from edge.core.authority import WHO_MAY
from tests.rigs.backend_page import PAGE, PAGES, page
from tests.rigs.backend_story import TOPICS, tell
from tests.rigs.documented import invalid

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from edge.core.authority import Right

SHADOW = TOPICS.shadow(at_aws=False)
ANEW = "python -m tests.rigs.backend_story, then python -m edge.contract.asyncapi > docs/asyncapi.json"
_STATES: dict[str, type[BaseModel]] = {TOPICS.status: Status, TOPICS.telemetry: Telemetry}
text = PAGE.read_text()
examples: dict[str, Any] = json.loads(EXAMPLES.read_text())


def table(first: str) -> list[list[str]]:
    """The rows below a heading whose first cell is this."""
    rows = text[text.index(f"| {first} |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_its_blocks_are_made_of_the_recording_and_the_code(path: Path) -> None:
    shown = path.read_text()
    assert page(shown, examples) == shown, ANEW
    fences = len(re.findall(r"^```json", shown, re.MULTILINE))
    assert fences == len(re.findall(r"<!-- examples: [\w ]+ -->\n```json", shown)) > 1


def test_its_commands_are_those_of_the_code() -> None:
    rows = table("command")
    assert [named(row[0]) for row in rows] == [[kind] for kind in BODIES]
    for (kind, body), (_, who_may, fields, reply) in zip(BODIES.items(), rows, strict=True):
        assert named(reply)[0] == REPLIES[kind].kind
        assert who_may == told(WHO_MAY[kind])
        if kind != "camera.set":  # its controls have a page of their own
            ranges = {"hd", "sd"} if kind == "stream.stop" else set()
            assert set(body.model_fields) - ranges <= set(named(fields)), kind
    for kind in RESERVED:
        assert f"`{kind}`" in text


def told(right: Right) -> str:
    return " or ".join([*(["owner"] if right.owner else []), *([f"`{right.scope}`"] if right.scope else [])])


def test_its_events_are_those_of_the_code() -> None:
    shown = {kind: set(named(fields)) for kinds, fields, _ in table("event") for kind in named(kinds)}
    assert shown == {kind: set(body.model_fields) for kind, body in EVENTS.items()}


@pytest.mark.slow
async def test_a_real_device_and_its_backends_say_just_that(tmp_path: Path) -> None:
    story = await tell(tmp_path)
    assert story.examples == examples, ANEW
    made = document(examples)
    answered: set[str] = set()
    kinds: dict[str, str] = {}
    for message in story.heard:
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
        assert said(known(message.topic, fields)) == said(fields), "nothing but what the models have"
        if fields.get("ok") and fields["id"] in kinds:
            assert fields["type"] == REPLIES[kinds[fields["id"]]].kind
            answered.add(kinds[fields["id"]])
    assert answered == set(BODIES)


def known(topic: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The same message by the contract's models, written again."""
    if topic in _STATES:
        return again(_STATES[topic], fields)
    if topic == SHADOW.update:
        return {"state": {"reported": again(Reported, fields["state"]["reported"])}}
    if topic == TOPICS.event:
        return again(Event, fields) | {"body": again(EVENTS[fields["type"]], fields["body"])}
    written = again(Reply, fields)
    if fields.get("body") is None:
        return written
    models = {reply.kind: reply.body for reply in REPLIES.values() if reply.body} | SESSION_MESSAGES
    return written | {"body": again(models[fields["type"]], fields["body"])}


def again(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = model.model_validate(fields).model_dump(mode="json")
    return written


def said(fields: dict[str, Any]) -> Any:
    """Without what is null, which says nothing here."""
    return json.loads(json.dumps(fields), object_hook=lambda each: {k: v for k, v in each.items() if v is not None})
