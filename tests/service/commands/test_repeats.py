"""A command that is delivered again takes effect once."""

from __future__ import annotations

import asyncio
import json

from tests.service.commands.rig import TOPICS, CommandRig, message


async def test_a_command_delivered_twice_takes_effect_once_and_is_answered_twice(rig: CommandRig) -> None:
    rig.sessions.gate.clear()
    command = json.dumps(message("session.offer", {"sdp": "v=0"})).encode()
    rig.send(command)
    rig.send(command)
    await asyncio.sleep(0.01)
    rig.sessions.gate.set()
    first, second = await rig.reply("c-session.offer"), await rig.reply("c-session.offer")
    rig.send(command)
    third = await rig.reply("c-session.offer")
    assert first == second == third
    assert rig.sessions.calls == ["open bff-1"]
    assert rig.counters["commands_repeated"] == 2


async def test_a_reused_id_with_another_type_is_replayed(rig: CommandRig) -> None:
    await rig.ask("stream.start", id="c-1")
    reply = await rig.ask("status.get", id="c-1")
    assert reply["error"]["code"] == "replayed"


async def test_the_same_id_of_another_client_is_another_command(rig: CommandRig) -> None:
    await rig.ask("stream.start")
    other = TOPICS.reply("bff-2")
    rig.send(json.dumps(message("stream.start", reply_to=other)).encode())
    await rig.reply("c-stream.start", other)
    assert len(rig.sessions.calls) == 2
