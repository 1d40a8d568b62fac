"""Connectivity checks with valid credentials and without PRIORITY, which aioice needs for a new candidate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aioice import stun

from tests.service.test_malformed_stun import attacked, until
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from aioice.ice import Connection

    from tests.service.test_malformed_stun import Attacked


def check(connection: Connection, **attributes: Any) -> bytes:
    """A check with the credentials of a viewer of this connection."""
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["USERNAME"] = f"{connection.local_username}:{connection.remote_username}"
    request.attributes.update(attributes)
    request.add_message_integrity(connection.local_password.encode())
    return bytes(request)


async def ports_of(peer: Attacked) -> int:
    await peer.send([])
    return peer.counters["stun_malformed"]


@pytest.mark.parametrize("connected", [False, True])
async def test_a_check_without_priority_from_a_new_address_is_dropped(connected: bool) -> None:
    async with attacked() as (peer, connect):
        ports, connection = await ports_of(peer), peer._peer._agent._connection
        if connected:
            await connect()
        known = list(connection.remote_candidates)
        await peer.send([check(connection)])
        await until(lambda: peer.counters["stun_malformed"] == 3 * ports)
        assert connection.remote_candidates == known
        if not connected:
            await connect()


async def test_a_check_with_priority_from_a_new_address_is_handled() -> None:
    async with attacked() as (peer, connect):
        ports, connection = await ports_of(peer), peer._peer._agent._connection
        await connect()
        known = len(connection.remote_candidates)
        await peer.send([check(connection, PRIORITY=1)])
        await until(lambda: peer.counters["stun_malformed"] == 2 * ports)
        # One for each address that the sender has at the ports of the device.
        assert known < len(connection.remote_candidates) <= known + ports


async def test_a_consent_check_without_priority_is_answered() -> None:
    async with stage() as on, asyncio.timeout(20):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)
        await viewer.take(answer)
        await events.live.wait()
        transport: Any = viewer.pc.getTransceivers()[0].receiver.transport.transport
        connection = transport._connection
        pair = connection._nominated[1]
        request = connection.build_request(pair, nominate=False)
        del request.attributes["PRIORITY"]
        response, _ = await pair.protocol.request(
            request, pair.remote_addr, integrity_key=connection.remote_password.encode()
        )
        assert response.message_class is stun.Class.RESPONSE
        assert on.counters["stun_malformed"] == 0
        await peer.close()
        await viewer.pc.close()
