"""Too many commands, refusals or log lines: each is limited and counted."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from tests.service.commands.rig import TOPICS, CommandRig, message, running

if TYPE_CHECKING:
    import pytest


async def test_commands_during_the_start_are_answered_after_it() -> None:
    rig = CommandRig()
    command = json.dumps(message("status.get")).encode()
    for _ in range(300):
        rig.send(command)
    assert rig.counters["commands_dropped"] == 300 - 256
    async with running(rig.outbox.run), running(rig.commands.run):
        await rig.reply("c-status.get")
    rig.send(command)
    assert rig.counters["commands_dropped"] == 300 - 255


async def test_commands_beyond_the_concurrency_limit_are_refused_and_the_others_continue(rig: CommandRig) -> None:
    rig.sessions.gate.clear()
    for number in range(70):
        rig.send(json.dumps(message("session.offer", {"sdp": "v=0"}, id=f"n{number}")).encode())
    assert (await rig.reply("n69"))["error"]["code"] == "rate_limited"
    rig.sessions.gate.set()
    assert (await rig.reply("n0"))["ok"]


async def test_large_messages_are_not_kept_while_the_daemon_starts() -> None:
    rig = CommandRig()
    rig.send(b" " * 40_000)
    assert rig.counters["commands_dropped"] == 1


async def test_error_replies_are_limited_by_a_budget(rig: CommandRig) -> None:
    for _ in range(200):
        rig.send(json.dumps(message("session.dance")).encode())
        await asyncio.sleep(0)
    await rig.ask("status.get")
    assert rig.counters["refused_bad_message"] == 200
    assert rig.counters["error_replies_withheld"] == 180


async def test_a_refusal_that_repeats_is_logged_at_growing_intervals(
    rig: CommandRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(121):
        rig.now_s = float(number)
        await rig.ask("session.dance", id=f"c-{number}")
    assert re.findall(r"command refused .* count=(\d+)", caplog.text) == ["1", "60"]
    await rig.ask("session.dance", id="other", to=TOPICS.reply("bff-2"))
    assert caplog.text.count("command refused") == 3, "another client's refusal is a different one"
    assert rig.counters["refused_bad_message"] == 122


async def test_a_flood_of_made_up_types_and_clients_writes_few_log_lines(
    rig: CommandRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(400):
        rig.now_s = number / 10
        await rig.ask(f"session.dance{number}", id=f"c-{number}", to=TOPICS.reply(f"bff-{number}"))
    assert caplog.text.count("command refused") <= 60 + 40 + 1
