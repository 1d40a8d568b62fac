"""Commands that fail because of bugs make the daemon unhealthy; what else happens between them does not hide it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.messages import COMMAND_LIMIT_BYTES
from edge.core.health import Health
from tests.service.commands.rig import REPLY_TO, CommandRig, message, running


async def test_commands_that_all_fail_because_of_a_bug_make_the_daemon_unhealthy(rig: CommandRig) -> None:
    rig.sessions.bug = ZeroDivisionError()
    health = Health(5)

    def fault(now_s: float) -> str | None:
        return health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters=rig.counters)

    for number in range(5):
        assert fault(number) is None
        await rig.ask("session.offer", {"sdp": "v=0"}, id=f"c-{number}")
    assert fault(5) is None
    assert fault(11) == "commands: every request fails because of a bug"
    await rig.ask("status.get")
    assert fault(12) is None


OUTCOMES: dict[str, dict[str, Any]] = {
    "bug": {"type": "session.offer", "body": {"sdp": "v=0"}},
    "success": {"type": "status.get"},
    "refusal of its handler": {"type": "camera.set", "body": {"gain": 99}},
    "bad_message": {"type": "session.dance"},
    "expired": {"type": "status.get", "expires_at": "2001-01-01T00:00:00Z"},
    "too_large": {"type": "status.get", "padding": " " * COMMAND_LIMIT_BYTES},
}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*OUTCOMES, "bug", "bug"]), min_size=5, max_size=15))
def test_only_a_command_whose_handler_ran_to_its_end_shows_that_commands_work(sequence: list[str]) -> None:
    async def run() -> None:
        rig = CommandRig()
        rig.sessions.bug = ZeroDivisionError()
        health, bugs_s = Health(5), list[int]()
        async with running(rig.outbox.run), running(rig.commands.run):
            for number, outcome in enumerate(sequence):
                now_s = rig.now_s = number * 3
                command = message("", **{"id": f"c-{number}", **OUTCOMES[outcome]})
                correlation = str(number).encode()
                rig.send(json.dumps(command).encode(), response_topic=REPLY_TO, correlation=correlation)
                await rig.broker.sent(lambda m: m.correlation == correlation)  # noqa: B023  called before the next one
                if outcome == "bug":
                    bugs_s.append(now_s)
                elif outcome in ("success", "refusal of its handler"):
                    bugs_s.clear()
                fault = health.fault(now_s, sessions_on_time=True, commands_on_time=True, counters=rig.counters)
                assert (fault is not None) == (len(bugs_s) >= 5 and now_s - bugs_s[0] >= 10)

    asyncio.run(run())
