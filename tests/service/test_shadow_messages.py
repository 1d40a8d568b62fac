"""The shadow's messages: documents, versions, refusals and invalid messages."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.contract.topics import Topics
from edge.mqtt.broker import Message
from edge.signalling.shadow import Shadow
from tests.service.fakes import FakeBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edge.errors import EdgeError


class FakeTuning:
    def __init__(self) -> None:
        self.desired: list[tuple[dict[str, Any], int | None, object]] = []
        self.now: dict[str, Any] = {"sessions": {"max_viewers": 5}, "outcome": None}
        self.version: int | None = None

    def desire(self, values: dict[str, Any], version: int | None, stamp: object) -> None:
        self.desired.append((values, version, stamp))

    def report(self) -> dict[str, Any]:
        return self.now


class ShadowRig:
    """The shadow part of a device; a test plays the service or the backend."""

    def __init__(self, *, asks: bool, answer_s: float, version: int | None) -> None:
        self.broker = FakeBroker()
        self.tuning = FakeTuning()
        self.tuning.version = version
        self.counters: Counter[str] = Counter()
        self.errors: list[EdgeError] = []
        self.refusals: list[EdgeError] = []
        self.topics = Topics("cam-1").shadow(at_aws=asks)
        self.shadow = Shadow(
            self.topics,
            self.broker,
            self.tuning,
            on_refusal=self.refusals.append,
            on_failure=self.errors.append,
            counters=self.counters,
            answer_s=answer_s,
        )

    async def asked(self, verb: str) -> dict[str, Any]:
        return await self.broker.sent(lambda message: message.topic == f"{self.topics.base}/{verb}")

    def deliver(self, topic: str, fields: object) -> None:
        payload = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        self.shadow.receive(Message(f"{self.topics.base}/{topic}", payload))

    async def answer_get(self, version: int, **state: Any) -> None:
        token = (await self.asked("get"))["clientToken"]
        metadata = {"desired": {"timestamp": version}}
        self.deliver("get/accepted", {"state": state, "metadata": metadata, "version": version, "clientToken": token})

    async def accept_update(self, version: int) -> dict[str, Any]:
        update = await self.asked("update")
        state: dict[str, Any] = update["state"]
        self.deliver("update/accepted", {"state": state, "version": version, "clientToken": update["clientToken"]})
        return state

    async def quiet(self) -> bool:
        """Whether the device sends nothing more for now."""
        for _ in range(20):
            await asyncio.sleep(0)
        return not self.broker.published


@asynccontextmanager
async def shadow_rig(*, asks: bool = True, answer_s: float = 5, version: int | None = None) -> AsyncIterator[ShadowRig]:
    """`version`: the last one before a restart."""
    made = ShadowRig(asks=asks, answer_s=answer_s, version=version)
    task = asyncio.create_task(made.shadow.run(asyncio.Event()))
    made.shadow.link(True)
    try:
        yield made
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_new_link_requests_the_document_and_reports_differences() -> None:
    async with shadow_rig() as d:
        desired = {"log": {"level": "debug"}}
        await d.answer_get(7, desired=desired, reported={"sessions": {"max_viewers": 9}})
        assert await d.accept_update(8) == {"reported": d.tuning.now}
        assert d.tuning.desired == [(desired, 7, {"timestamp": 7})]
        assert await d.quiet()
        # A repeated notification after the device's own report is not new.
        d.deliver("update/delta", {"state": desired, "version": 8})
        assert await d.quiet()
        d.shadow.link(False)
        d.shadow.link(True)
        await d.answer_get(8, desired=desired, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()


async def test_the_report_creates_a_missing_shadow() -> None:
    async with shadow_rig() as d:
        token = (await d.asked("get"))["clientToken"]
        d.deliver("get/rejected", {"code": 404, "message": "No shadow exists with name: 'edge'", "clientToken": token})
        await d.accept_update(1)
        assert await d.quiet()
        assert (d.tuning.desired, d.errors) == ([], [])


@pytest.mark.parametrize(
    ("topic", "state"),
    [("update/delta", {"log": {"level": "debug"}}), ("update/accepted", {"desired": {"log": None}})],
)
async def test_every_notification_of_desired_settings_requests_the_whole_document(
    topic: str, state: dict[str, Any]
) -> None:
    async with shadow_rig() as d:
        await d.answer_get(3, reported={"sessions": {"max_viewers": 5}})
        d.deliver(topic, {"state": state, "version": 4, "clientToken": "a backend's"})
        await d.answer_get(4, desired={"a": 1}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert [version for _, version, _ in d.tuning.desired] == [3, 4]


async def test_after_an_answer_older_than_a_notification_the_document_is_requested_again() -> None:
    async with shadow_rig() as d:
        token = (await d.asked("get"))["clientToken"]
        d.deliver("update/delta", {"state": {"a": 1}, "version": 5})
        d.deliver("get/accepted", {"state": {}, "version": 4, "clientToken": token})
        await d.answer_get(5, desired={"a": 1}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert [version for _, version, _ in d.tuning.desired] == [4, 5]


async def test_another_writer_between_the_report_and_its_answer_is_not_missed() -> None:
    async with shadow_rig() as d:
        await d.answer_get(3)
        # A backend wrote version 4; its delta arrives late.
        await d.accept_update(5)
        d.deliver("update/delta", {"state": {"a": 1}, "version": 4})
        await d.answer_get(5, desired={"a": 1}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert d.tuning.desired[-1][0] == {"a": 1}


@pytest.mark.parametrize(("code", "expected"), [(409, Code.INTERNAL), (403, Code.FORBIDDEN), (429, Code.RATE_LIMITED)])
async def test_a_refused_report_is_logged_once_and_retried(
    code: int, expected: Code, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    async with shadow_rig() as d:
        await d.answer_get(3)
        for _ in range(2):
            token = (await d.asked("update"))["clientToken"]
            d.deliver("update/rejected", {"code": code, "message": "why\nnot", "clientToken": token})
        await d.accept_update(5)
        assert await d.quiet()
        failure = (expected, f"shadow: update was refused: {code} 'why\\nnot'")
        assert [(error.code, error.message) for error in d.errors] == [failure, failure]
        assert caplog.text.count("shadow failed") == 1
        assert d.refusals == []
        assert d.counters == {"shadow_requests_failed": 2}


async def test_failing_requests_are_retried_while_the_link_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Short waits, and a long one at the end.
    draws = [0.0] * 20
    monkeypatch.setattr("random.random", lambda: draws.pop() if draws else 0.99)
    async with shadow_rig() as d:
        for _ in range(21):
            token = (await d.asked("get"))["clientToken"]
            d.deliver("get/rejected", {"code": 429, "message": "throttled", "clientToken": token})
        assert await d.quiet()
        assert d.counters == {"shadow_requests_failed": 21}
        assert {error.code for error in d.errors} == {Code.RATE_LIMITED}
        assert d.shadow._backoff.next_s(1.0) == 900
        # A notification ends the wait.
        d.shadow.changed()
        token = (await d.asked("get"))["clientToken"]
        d.deliver("get/rejected", {"code": 429, "message": "throttled", "clientToken": token})
        assert await d.quiet()
        d.shadow.link(False)
        d.shadow.link(True)
        await d.answer_get(1, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()


@pytest.mark.parametrize("given", [1, 8])
async def test_after_a_lower_version_the_next_answer_is_accepted(given: int) -> None:
    """The shadow was deleted and its versions restarted, or the message is only late."""
    async with shadow_rig() as d:
        await d.answer_get(8, desired={"a": 8}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        d.deliver("update/accepted", {"state": {"desired": {"a": 1}}, "version": 1})
        d.deliver("update/delta", {"state": {"a": 1}, "version": 1})
        await d.answer_get(given, desired={"a": given}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert d.tuning.desired[-1][:2] == ({"a": given}, given)
        d.deliver("update/delta", {"state": {"a": 2}, "version": given + 1})
        await d.answer_get(given + 1, desired={"a": 2}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()


async def test_after_a_deletion_the_lower_version_is_accepted_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    async with shadow_rig() as d:
        await d.answer_get(8, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        d.deliver("update/delta", {"state": {"a": 1}, "version": 9})
        for _ in range(2):
            await d.answer_get(1, desired={"a": 2}, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert [version for _, version, _ in d.tuning.desired] == [8, 1]


async def test_a_broken_link_ends_the_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    async with shadow_rig(answer_s=60) as d:
        await d.asked("get")
        d.broker.connected = False
        d.shadow.link(False)
        assert await d.quiet()
        d.broker.connected = True
        d.shadow.link(True)
        await d.answer_get(1, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert d.errors == []


async def test_a_failed_publish_is_reported() -> None:
    async with shadow_rig() as d:
        d.broker.failing = 1_000_000
        d.shadow.changed()
        await asyncio.sleep(0)
        await d.quiet()
        assert [error.message for error in d.errors] == ["the broker did not acknowledge in time"]


async def test_requests_back_off_if_the_broker_closes_the_link_because_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.0, 1.0])
    monkeypatch.setattr("random.random", lambda: next(drawn))
    async with shadow_rig() as d:
        d.broker.gate.clear()
        await d.quiet()
        d.broker.connected = False
        d.shadow.link(False)
        d.broker.gate.set()
        await d.quiet()
        d.broker.published.clear()
        d.broker.connected = True
        d.shadow.link(True)
        assert await d.quiet(), "the new link is not put at stake at once"
        assert await d.asked("get")


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


BAD = [
    b"no JSON",
    b"[]",
    b'{"state": 5}',
    b'{"state": {}, "version": "x"}',
    b'{"state": {"a": "\\ud800"}}',
    json.dumps({"state": {"a": "x" * 8192}}).encode(),
    json.dumps({"state": nested(7)}).encode(),
    json.dumps({"state": nested(400)}).encode(),
]


@pytest.mark.parametrize("payload", BAD)
async def test_an_invalid_document_is_counted_and_logged_once(payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with shadow_rig(asks=False) as d:
        await d.asked("update")
        for _ in range(3):
            d.deliver("update/delta", payload)
        assert d.counters == {"shadow_documents_refused": 3}
        assert (len(d.refusals), d.errors) == (3, [])
        assert caplog.text.count("shadow failed") == 1
        assert d.tuning.desired == []
        d.deliver("update/delta", {"state": {}, "version": 1})
        assert len(d.tuning.desired) == 1


@pytest.mark.parametrize("desired", [5, {"a": "x" * 8192}, nested(7)])
async def test_a_document_beyond_the_limits_is_refused_and_not_requested_again(desired: object) -> None:
    async with shadow_rig() as d:
        await d.answer_get(1, desired=desired, reported={"sessions": {"max_viewers": 5}})
        assert await d.quiet()
        assert (len(d.refusals), d.errors) == (1, [])
        assert d.tuning.desired == []


async def test_without_a_service_the_delta_is_the_whole_document_and_the_report_is_retained() -> None:
    async with shadow_rig(asks=False) as d:
        assert await d.asked("update") == {"state": {"reported": d.tuning.now}}
        d.deliver("update/delta", {"state": {"a": 1}, "version": 3})
        d.deliver("update/delta", {"state": {"a": 0}, "version": 2})
        d.deliver("update/delta", b"")
        assert d.tuning.desired == [({"a": 1}, 3, 3)]
        d.tuning.now = {"sessions": {"max_viewers": 6}}
        d.shadow.changed()
        d.shadow.changed()
        assert await d.quiet() is False
        (report,) = d.broker.published
        assert report.retain
        assert report.topic == "edge/v1/cam-1/shadow/update"


async def test_without_a_service_older_versions_are_refused_also_after_a_restart() -> None:
    async with shadow_rig(asks=False, version=4) as d:
        d.deliver("update/delta", {"state": {"a": 3}, "version": 3})
        d.deliver("update/delta", {"state": {"a": 5}, "version": 5})
        d.shadow.link(False)
        d.shadow.link(True)
        d.deliver("update/delta", {"state": {"a": 4}, "version": 4})
        assert d.tuning.desired == [({"a": 5}, 5, 5)]
        assert d.counters == {"shadow_documents_refused": 2}
        assert [error.message for error in d.refusals] == [
            f"shadow: version {version} is older than the last, {version + 1}" for version in (3, 4)
        ]
        # A document without a version is accepted, and versions start again after it.
        d.deliver("update/delta", {"state": {"a": 0}})
        d.deliver("update/delta", {"state": {"a": 1}, "version": 1})
        assert d.tuning.desired[1:] == [({"a": 0}, None, None), ({"a": 1}, 1, 1)]
