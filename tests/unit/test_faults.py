"""No sentence of pydantic reaches a user, whatever is wrong with settings, messages or HTTP requests."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edge.contract import events, messages, shadow
from edge.contract.decode import read
from edge.contract.faults import plain_faults, shown
from edge.contract.messages import BODIES, Command, ControlsBody, OfferBody, StreamBody
from edge.demo import backend, turn
from edge.demo.backend import BackendSettings, make_backend
from edge.errors import ConfigInvalid, Rejected
from edge.local_api.app import make_app
from edge.settings import Settings, tuned
from edge.settings_reference import sections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

PYDANTIC = re.compile(
    r"Input |should |valid (dictionary|string|integer|number|boolean|list|tuple|datetime)|instance of|Extra inputs|"
    r"Field required|Value error|unable to parse|greater than or|less than or|another value|not a valid value|"
    r"function-|constrained-|list\["
)


def models_in(*modules: Any) -> Iterator[type[BaseModel]]:
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__:
                yield value


MODELS: list[type[BaseModel]] = [
    Settings,
    *(model for _, model in sections(Settings)),
    *models_in(messages, events, shadow, backend, turn),
]

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
WRONG: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1.5,
    float("nan"),
    "",
    "x" * 600,
    "\ud800",
    "2026-01-01T00:00:00",
    [],
    [{}],
    {},
    {"a": 1},
]


ENTRY = "text of at most 256 characters"


def faults_of(model: type[BaseModel], fields: Any) -> list[str]:
    try:
        model.model_validate(fields)
    except ValidationError as exc:
        return plain_faults(exc.errors(), model)
    return []


def assert_plain(faults: list[str]) -> None:
    for fault in faults:
        assert not PYDANTIC.search(fault), fault
        fault.encode()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_reports_every_wrong_field_in_plain_words(model: type[BaseModel]) -> None:
    for wrong in WRONG:
        assert_plain(faults_of(model, wrong))
        for name, field in model.model_fields.items():
            assert_plain(faults_of(model, {field.alias or name: wrong}))
            assert_plain(faults_of(model, {field.alias or name: [wrong, {"x": wrong}]}))
            assert_plain(faults_of(model, {field.alias or name: {"min_bps": wrong, "urls": wrong, "k": wrong}}))
        assert_plain(faults_of(model, {"unknown": wrong, "\ud800" * 99: wrong}))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_document_is_reported_in_plain_words(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(MODELS))
    keys = st.sampled_from([*model.model_fields]) | st.text(max_size=9) if model.model_fields else st.text(max_size=9)
    assert_plain(faults_of(model, data.draw(st.dictionaries(keys, Json, max_size=6))))


@pytest.mark.parametrize(
    ("model", "fields", "faults"),
    [
        (ControlsBody, {"zoom": 3}, ["zoom: an object with x, y, width and height"]),
        (
            ControlsBody,
            {"zoom": {"x": 0, "y": 0, "width": 2}},
            [
                "zoom.width: a number greater than 0 and at most 1",
                "zoom.height: missing (a number greater than 0 and at most 1)",
            ],
        ),
        (
            ControlsBody,
            {"zoom": {"x": 0.5, "y": 0, "width": 1, "height": 1}},
            ["zoom: the region exceeds the field of view"],
        ),
        (ControlsBody, {"fps": "many"}, ["fps: a whole number"]),
        (ControlsBody, {"autofocus": "on"}, ['autofocus: "manual", "auto" or "continuous"']),
        (StreamBody, {"reason": "x" * 300}, ["reason: text of at most 256 characters"]),
        (StreamBody, {"hd": []}, ["hd: an object"]),
        (
            OfferBody,
            {"spd": "v=0"},
            ["sdp: missing (text of at least 1 character); spd is not a known key: did you mean sdp?"],
        ),
        (OfferBody, {"sdp": "v=0", "session": "a b"}, ["session: text of 1 to 64 letters, digits, - and _"]),
        (
            OfferBody,
            {"sdp": "v=0", "ice_servers": [{"urls": 3}]},
            [f"ice_servers.0.urls: a list of at most 8 entries, each {ENTRY} or {ENTRY}"],
        ),
        (shadow.Desired, {"camera": {"hd": {"max_pbs": 1}}}, ["camera.hd.max_pbs: unknown key; did you mean max_bps?"]),
        (shadow.Desired, {"sessions": {"max_viewers": 1.5}}, ["sessions.max_viewers: a whole number"]),
    ],
)
def test_a_fault_says_what_is_expected(model: type[BaseModel], fields: dict[str, Any], faults: list[str]) -> None:
    assert faults_of(model, fields) == faults


def test_a_key_is_shown_within_bounds() -> None:
    assert shown("a" * 99) == "a" * 64 + "..."
    assert shown("\ud800\n") == "\\ud800\\n"


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_commands_are_refused_in_plain_words(kind: str) -> None:
    now = datetime.now(UTC)
    fields = {"v": 1, "id": "1", "type": kind, "expires_at": (now + timedelta(seconds=9)).isoformat()}
    for name in [*BODIES[kind].model_fields, ""]:
        for wrong in WRONG:
            for changed in ({"body": {name: wrong}}, {"body": wrong}, {name: wrong}, {"expires_at": wrong}):
                received = read(b"{}")
                received.fields.update(fields | changed)
                try:
                    received.command(now)
                except Rejected as exc:
                    assert_plain(exc.message.split("; "))


def test_a_misspelt_command_is_corrected() -> None:
    now = datetime.now(UTC)
    received = read(b"{}")
    expires_at = (now + timedelta(seconds=9)).isoformat()
    received.fields.update({"v": 1, "id": "1", "type": "session.ofer", "expires_at": expires_at, "body": {}})
    with pytest.raises(Rejected, match=r"did you mean session\.offer\?"):
        received.command(now)


def test_desired_settings_are_refused_in_plain_words() -> None:
    base = Settings.model_validate({"device": {"id": "a"}, "mqtt": {"host": "b"}, "auth": {"mode": "off"}})
    desired = {"camera": {"hd": {"min_bps": "x", "max": 3}, "idle_stop_s": -1}, "log": {"level": "loud"}, "api": {}}
    with pytest.raises(ConfigInvalid) as caught:
        tuned(base, desired)
    assert set(caught.value.faults) == {
        "camera.hd.min_bps: a whole number",
        "camera.hd.max: unknown key; did you mean max_bps?",
        "camera.idle_stop_s: a number from 0 to 3600",
        'log.level: "debug", "info", "warning" or "error"',
        "api: unknown key",
    }


class Nobody:
    """The demo's camera, which no request reaches."""

    device = "cam-1"


APPS: list[tuple[str, FastAPI]] = [
    ("local", make_app(Nobody(), Nobody(), lambda: messages.Status, lambda: None, Counter())),  # type: ignore[arg-type,return-value]
    ("demo", make_backend(Nobody(), None, BackendSettings())),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("name", "app"), APPS, ids=lambda value: value if isinstance(value, str) else "")
async def test_http_requests_are_refused_in_plain_words(name: str, app: FastAPI) -> None:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    refused = 0
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        for route in app.routes:
            for method in getattr(route, "methods", ()):
                path = getattr(route, "path", "").replace("{session}", "a%20b")
                for content in (b"", b"{", b"3", b"[]", b'{"zoom": 3, "reason": 5, "session": "a b", "hd": 1}'):
                    headers = {"content-type": "application/json"}
                    answer = await http.request(
                        method, path, content=content, headers=headers, params={"width": "x", "quality": "500"}
                    )
                    if answer.status_code == 400:
                        refused += 1
                        assert_plain(answer.json()["error"]["message"].split("; "))
    assert refused > 10, name


async def test_the_local_api_says_what_zoom_is() -> None:
    transport = httpx.ASGITransport(app=APPS[0][1])
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answer = await http.patch("/api/v1/camera", json={"zoom": 3})
        assert answer.json()["error"]["message"] == "body.zoom: an object with x, y, width and height"
        answer = await http.patch("/api/v1/camera", content=b"{", headers={"content-type": "application/json"})
        assert answer.json()["error"]["message"] == "body: not JSON"
        answer = await http.get("/api/v1/snapshot.jpg", params={"width": "x"})
        assert answer.json()["error"]["message"] == "query.width: a whole number from 16 to 1920"


@pytest.mark.parametrize("expires_at", [None, "yesterday", "2026-01-31T12:00:00", True])
def test_a_faulty_date_is_named_as_a_date(expires_at: object) -> None:
    fields = {"v": 1, "id": "1", "type": "status.get", "expires_at": expires_at, "reply_to": "a/b", "body": {}}
    with pytest.raises(ValidationError) as caught:
        Command.model_validate(fields)
    assert plain_faults(caught.value.errors(), Command) == [
        "expires_at: a date and time with a time zone, such as 2026-01-31T12:00:00Z"
    ]
