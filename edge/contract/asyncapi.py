"""Prints the AsyncAPI 3 document: `python -m edge.contract.asyncapi > docs/asyncapi.json`.

It describes the device: it receives commands and sends the other messages. The examples in docs/examples.json are
messages of a real device and its backend.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from edge.contract.codes import Code, EndReason
from edge.contract.events import EVENTS
from edge.contract.messages import (
    BODIES,
    COMMAND_LIMIT_BYTES,
    LIFETIME_LIMIT_S,
    PACKET_LIMIT_BYTES,
    RESERVED,
    Command,
    ErrorInfo,
    Event,
    Offline,
    Reply,
    Status,
    Telemetry,
)
from edge.contract.replies import REPLIES, SESSION_MESSAGES
from edge.contract.shadow import Desired, Reported
from edge.contract.topics import DEVICE_ID, Topics
from edge.core.authority import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

Json = dict[str, Any]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples.json"
_TOPICS = Topics("{device}")
_BINDING = "0.2.0"


@dataclass(frozen=True, slots=True)
class _State:
    """A channel that describes the device, and its messages by key. They have no type."""

    name: str
    address: str
    models: dict[str, type[BaseModel]]
    retain: bool


_STATES = (
    _State("status", _TOPICS.status, {"status": Status, "status.offline": Offline}, retain=True),
    _State("telemetry", _TOPICS.telemetry, {"telemetry": Telemetry}, retain=False),
)


class _Schema(GenerateJsonSchema):
    """Without titles: pydantic would only repeat the field's name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


class _Document:
    """The sections of the document, which refer to each other."""

    def __init__(self, examples: Mapping[str, Json]) -> None:
        self.channels: Json = {}
        self.operations: Json = {}
        self.messages: Json = {}
        self._examples = examples
        replies = [kind.body for kind in REPLIES.values() if kind.body is not None]
        bodies = [*BODIES.values(), *replies, *SESSION_MESSAGES.values(), *EVENTS.values()]
        models: list[type[BaseModel]] = [Command, Reply, ErrorInfo, Event, Desired, Reported, *bodies]
        models += [model for state in _STATES for model in state.models.values()]
        self._refs, made = models_json_schema(
            [(model, "validation") for model in dict.fromkeys(models)],
            ref_template="#/components/schemas/{model}",
            schema_generator=_Schema,
        )
        self.schemas: Json = made["$defs"]
        self.schemas["Code"]["description"] = _meanings(f"{code}: {code.when}; {code.remedy}." for code in Code)
        self.schemas["EndReason"]["description"] = _meanings(f"{reason}: {reason.when}." for reason in EndReason)

    def channel(self, name: str, address: str, description: str, messages: Iterable[str]) -> None:
        parameters = {key: _PARAMETERS[key] for key in _PARAMETERS if f"{{{key}}}" in address}
        listed = {key: {"$ref": f"#/components/messages/{key}"} for key in messages}
        self.channels[name] = {
            "address": address,
            "description": description,
            "messages": listed,
            "parameters": parameters,
        }

    def operation(
        self, name: str, action: str, channel: str, messages: Iterable[str], more: Json, *, retain: bool = False
    ) -> None:
        self.operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": _in_channel(channel, messages),
            "bindings": {"mqtt": {"qos": 1, "retain": retain, "bindingVersion": _BINDING}},
            **more,
        }

    def message(self, key: str, name: str, summary: str, payload: Json, **more: object) -> str:
        """Add a message with its recorded examples; return its key."""
        examples = [
            {"name": example, "payload": recorded["message"]}
            for example, recorded in self._examples.items()
            if message_key(recorded["topic"], recorded["message"]) == key
        ]
        self.messages[key] = {"name": name, "title": name, "summary": summary, "payload": payload, **more}
        if examples:
            self.messages[key]["examples"] = examples
        return key

    def ref(self, model: type[BaseModel]) -> Json:
        return dict(self._refs[model, "validation"])

    def envelope(self, model: type[BaseModel], required: list[str], **fields: Json) -> Json:
        """An envelope whose `fields` have more specific schemas."""
        return {"allOf": [self.ref(model), {"type": "object", "properties": fields, "required": required}]}


def document(examples: Mapping[str, Json]) -> Json:
    """Make the document. `examples`: messages by name, each with its `topic`."""
    made = _Document(examples)
    _commands(made)
    _session_messages(made)
    _events(made)
    _shadow(made)
    for state in _STATES:
        for key, model in state.models.items():
            made.message(key, key, _first_line(model), made.ref(model))
        made.channel(state.name, state.address, _first_line(state.models[state.name]), state.models)
        made.operation(f"send.{state.name}", "send", state.name, state.models, {}, retain=state.retain)
    return {
        "asyncapi": "3.0.0",
        "info": _INFO,
        "defaultContentType": "application/json",
        "servers": {"broker": _SERVER},
        "channels": made.channels,
        "operations": made.operations,
        "components": {
            "messages": made.messages,
            "schemas": made.schemas,
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def message_key(topic: str, message: Mapping[str, Any]) -> str:
    """The key of a message in the document, from its topic and type."""
    channel, *rest = topic.split("/")[Topics("").command.count("/") :]
    if channel == "shadow":
        return ".".join([channel, *rest])
    if channel == "status":
        return channel if message.get("stream") else "status.offline"
    return f"{channel}.{message['type']}" if "type" in message else channel


def _commands(made: _Document) -> None:
    error = made.message(
        "reply.error",
        "error",
        "A command was refused; nothing changed.",
        made.envelope(Reply, ["v", "error"], type=_const("error"), ok=_const(False), error=made.ref(ErrorInfo)),
        **_CORRELATED,
    )
    for reply in dict.fromkeys(REPLIES.values()):
        fields: Json = {"type": _const(reply.kind), "ok": _const(True)}
        if reply.body is not None:
            fields["body"] = made.ref(reply.body)
        required = ["v", "body"] if reply.body else ["v"]
        summary = _first_line(reply.body) if reply.body else "The command took effect."
        payload = made.envelope(Reply, required, **fields)
        made.message(f"reply.{reply.kind}", reply.kind, summary, payload, **_CORRELATED)
    for kind, body in BODIES.items():
        needed = ["body"] if any(field.is_required() for field in body.model_fields.values()) else []
        payload = made.envelope(Command, needed, type=_const(kind), body=made.ref(body))
        made.message(f"command.{kind}", kind, _first_line(body), payload, **_ANSWERED)
    replies = [*dict.fromkeys(f"reply.{reply.kind}" for reply in REPLIES.values()), error]
    notifications = [f"reply.{kind}" for kind in SESSION_MESSAGES]
    made.channel("command", _TOPICS.command, _COMMAND, [f"command.{kind}" for kind in BODIES])
    made.channel("reply", _TOPICS.reply("{client}"), _REPLY, [*replies, *notifications])
    for kind in BODIES:
        permission = PERMISSIONS[kind]
        answers = _in_channel("reply", [f"reply.{REPLIES[kind].kind}", error])
        made.operation(
            kind,
            "receive",
            "command",
            [f"command.{kind}"],
            {
                "reply": {"channel": {"$ref": "#/channels/reply"}, "messages": answers},
                "security": [{"$ref": "#/components/securitySchemes/token"}],
                # The scope that the token needs. `owner`: one of the session's subject.
                "x-permission": {"scope": permission.scope, "owner": permission.owner},
            },
        )


def _session_messages(made: _Document) -> None:
    for kind, body in SESSION_MESSAGES.items():
        fields = {"type": _const(kind), "ok": _const(True), "body": made.ref(body)}
        made.message(f"reply.{kind}", kind, _first_line(body), made.envelope(Reply, ["v", "body"], **fields))
    made.operation(
        "send.session",
        "send",
        "reply",
        [f"reply.{kind}" for kind in SESSION_MESSAGES],
        {"description": "Messages about a session, to the reply client that opened it."},
    )


def _events(made: _Document) -> None:
    keys = [
        made.message(
            f"event.{kind}",
            kind,
            _first_line(body),
            made.envelope(Event, [], type=_const(kind), body=made.ref(body)),
        )
        for kind, body in EVENTS.items()
    ]
    made.channel("event", _TOPICS.event, "Events, including those that happened while the link was down.", keys)
    made.operation("send.event", "send", "event", keys, {})


def _shadow(made: _Document) -> None:
    """The shadow on brokers other than AWS IoT; AWS documents its own topics."""
    topics = _TOPICS.shadow(at_aws=False)
    version = {"type": "integer", "description": "Increasing; a lower one than the last is ignored."}
    for name, action, address, summary, fields in (
        ("shadow.update.delta", "receive", topics.delta, _DESIRED, {"state": made.ref(Desired), "version": version}),
        ("shadow.update", "send", topics.update, _REPORTED, {"state": _object(reported=made.ref(Reported))}),
    ):
        made.message(name, name, summary, _object(**fields))
        made.channel(name, address, summary, [name])
        made.operation(name, action, name, [name], {}, retain=True)


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": [name for name in fields if name != "version"]}


def _in_channel(channel: str, messages: Iterable[str]) -> list[Json]:
    return [{"$ref": f"#/channels/{channel}/messages/{key}"} for key in messages]


def _const(value: object) -> Json:
    return {"const": value}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]


def _meanings(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


_COMMAND = (
    f"One command per message, at most {COMMAND_LIMIT_BYTES} bytes. A command takes effect once, however often it is "
    "delivered: the same sender and `id` get the same reply again. The sender chooses a unique `id`. `expires_at` is "
    f"at most {LIFETIME_LIMIT_S} s ahead. A command with an invalid reply topic changes nothing and gets no reply. "
    f"Reserved and rejected as `unsupported`: {', '.join(sorted(RESERVED))}."
)
_REPLY = (
    "The replies to one backend client, and messages about its sessions. The device sends the reply to the command's "
    "MQTT 5 response topic, or else to its `reply_to`; both must be this address. A reply has the `id` of its command. "
    "A message that the device sends unasked has its own id, and `body.session`."
)
_DESIRED = "All settings that the backend desires, retained. A setting that is left out has the value of the file."
_REPORTED = "The settings in force, retained by the device. At AWS IoT both are in the thing's shadow named `edge`."
_PARAMETERS: Json = {
    "device": {"description": f"The device id, which is its MQTT client id and AWS thing name: {DEVICE_ID}"},
    "client": {"description": "A name that the backend chooses: 1 to 64 of letters, digits, `_`, `.`, `:` and `-`"},
}
_INFO: Json = {
    "title": "edge-streamer over MQTT",
    "version": "1",
    "description": (
        "The messages between a backend and a device: JSON, at QoS 1. Ignore unknown fields. `edge/v1` is the device's "
        "setting mqtt.prefix; a new major version of this contract has a new prefix. MQTT 3.1.1 has no response topic "
        "and no correlation data: use `reply_to` and `id`. For an introduction see docs/backend.md."
    ),
    "license": {"name": "MIT"},
}
_SERVER: Json = {
    "host": "broker.example.com:8883",
    "protocol": "secure-mqtt",
    "protocolVersion": "5",
    "description": "Your broker; MQTT 3.1.1 works as well. The bindings are those of the device's connection.",
    "security": [{"$ref": "#/components/securitySchemes/certificate"}, {"$ref": "#/components/securitySchemes/user"}],
    "bindings": {
        "mqtt": {
            "clientId": "{device}",
            "cleanSession": False,
            "lastWill": {
                "topic": _TOPICS.status,
                "qos": 1,
                "message": "The message `status.offline`.",
                "retain": True,
            },
            "keepAlive": 30,
            "sessionExpiryInterval": 300,
            "maximumPacketSize": PACKET_LIMIT_BYTES,
            "bindingVersion": _BINDING,
        }
    },
}
_SECURITY_SCHEMES: Json = {
    "certificate": {"type": "X509", "description": "A client certificate; at AWS IoT that of a thing."},
    "user": {"type": "userPassword", "description": "If the broker requires them."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": (
            "Sent in the command's field `token`, not in a header: a JWT (EdDSA or ES256) that the backend signs; see "
            "docs/authority.md."
        ),
    },
}
_CORRELATION: Json = {"type": "string", "description": "That of the command, if it had any."}
_CORRELATED: Json = {
    "correlationId": {"location": "$message.payload#/id"},
    "bindings": {"mqtt": {"correlationData": _CORRELATION, "bindingVersion": _BINDING}},
}
_RESPONSE_TOPIC: Json = {"type": "string", "description": "The reply topic; takes precedence over `reply_to`."}
_ANSWERED: Json = {
    "correlationId": {"location": "$message.payload#/id"},
    "bindings": {
        "mqtt": {
            "responseTopic": _RESPONSE_TOPIC,
            "correlationData": {"type": "string", "description": "Returned with the reply."},
            "bindingVersion": _BINDING,
        }
    },
}

if __name__ == "__main__":
    json.dump(document(json.loads(EXAMPLES.read_text())), sys.stdout, indent=2)
    sys.stdout.write("\n")
