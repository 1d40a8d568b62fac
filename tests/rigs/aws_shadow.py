"""A fake of the AWS IoT Device Shadow service for one named shadow, on any broker.

It follows AWS's documentation. The version counts every change. An update merges fields, and null removes a field.
`accepted` repeats the request. A delta contains only the desired fields that differ from the reported ones. `get`
returns the whole document with timestamps. Errors have a code.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from edge.contract.topics import Topics
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.mqtt.settings import MqttSettings

TIMEOUT_S = 20


class AwsShadow:
    """`desire` is a backend's update over HTTPS. `refusals`: errors for the next requests, as (code, message)."""

    def __init__(self, mqtt: MqttSettings, thing: str = "cam-1") -> None:
        self.state: dict[str, Any] | None = None
        self.version = 0
        self.requests: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str]] = []
        self._times: dict[str, Any] = {}
        self._clock = 1_800_000_000
        self._topics = Topics(thing).shadow(at_aws=True)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._linked = asyncio.Event()
        self._changed = asyncio.Event()
        self._broker = PahoBroker(mqtt, "aws-shadow", (self._topics.get, self._topics.update), None)
        self._broker.listen(self._inbox.put_nowait, lambda up: self._linked.set() if up else None)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[AwsShadow]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._broker.run(asyncio.Event())), group.create_task(self._serve())]
            await self._linked.wait()
            yield self
            for task in tasks:
                task.cancel()

    @property
    def reported(self) -> dict[str, Any]:
        found: dict[str, Any] = (self.state or {}).get("reported", {})
        return found

    @property
    def outcome(self) -> tuple[str, int] | None:
        """The outcome that the device reported, and the version that it belongs to."""
        outcome = self.reported.get("outcome")
        return (outcome["state"], outcome.get("version", 0)) if outcome else None

    async def desire(self, desired: dict[str, Any] | None) -> int:
        """Update the desired state. Returns: the new version."""
        await self._update({"state": {"desired": desired}})
        return self.version

    def delete(self) -> None:
        """Delete the shadow and its version."""
        self.state, self.version, self._times = None, 0, {}

    async def until(self, condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self) -> None:
        while True:
            message = await self._inbox.get()
            verb = message.topic.rpartition("/")[2]
            self.requests.append(verb)
            request = json.loads(message.payload)
            token = {"clientToken": request["clientToken"]} if "clientToken" in request else {}
            if self.refusals:
                code, text = self.refusals.pop(0)
                await self._send(f"{verb}/rejected", {"code": code, "message": text, "timestamp": self._clock, **token})
            elif verb == "get":
                await self._get(token)
            elif (version := request.get("version")) is not None and version != self.version:
                text = "Version conflict"
                await self._send("update/rejected", {"code": 409, "message": text, "timestamp": self._clock, **token})
            else:
                assert not message.retain
                self.reports += [request["state"]["reported"]]
                await self._update(request)
            self._changed.set()

    async def _get(self, token: dict[str, str]) -> None:
        if self.state is None:
            text = "No shadow exists with name: 'edge'"
            await self._send("get/rejected", {"code": 404, "message": text, "timestamp": self._clock, **token})
            return
        delta = _difference(self.state.get("desired", {}), self.state.get("reported", {}))
        state = {**self.state, "delta": delta} if delta else self.state
        await self._send("get/accepted", {"state": state, "metadata": self._times, **self._stamp(), **token})

    async def _update(self, request: dict[str, Any]) -> None:
        self._clock += 1
        self.version += 1
        self.state = _merged(self.state or {}, request["state"])
        self._times = _merged(self._times, _times(request["state"], self._clock))
        token = {"clientToken": request["clientToken"]} if "clientToken" in request else {}
        accepted = {"state": request["state"], "metadata": _times(request["state"], self._clock)}
        await self._send("update/accepted", {**accepted, **self._stamp(), **token})
        if delta := _difference(self.state.get("desired", {}), self.state.get("reported", {})):
            await self._send("update/delta", {"state": delta, **self._stamp(), **token})

    def _stamp(self) -> dict[str, int]:
        return {"version": self.version, "timestamp": self._clock}

    async def _send(self, topic: str, document: dict[str, Any]) -> None:
        await self._broker.publish(Message(f"{self._topics.base}/{topic}", json.dumps(document).encode()))


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            known = merged.get(key)
            merged[key] = _merged(known if isinstance(known, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _times(state: dict[str, Any], now: int) -> dict[str, Any]:
    return {
        key: _times(value, now) if isinstance(value, dict) else None if value is None else {"timestamp": now}
        for key, value in state.items()
    }


def _difference(desired: dict[str, Any], reported: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in desired.items():
        known = reported.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := _difference(value, known):
                found[key] = inner
        elif value != known:
            found[key] = value
    return found
