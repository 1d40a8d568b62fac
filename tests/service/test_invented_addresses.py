"""STUN and TURN servers that answer with addresses that no viewer may be sent to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.messages import IceServer
from tests.rigs.coturn import own_address
from tests.rigs.ice_traffic import IceServerRig, ice_server
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GOOD = ("192.0.2.1", 4000)
INVENTED = [
    ("0.0.0.0", 4000),
    ("0.1.2.3", 4000),
    ("255.255.255.255", 4000),
    ("224.0.0.251", 5353),
    ("127.0.0.1", 4000),
    ("169.254.1.1", 4000),
    ("192.0.2.1", 0),
    ("::", 4000),
    ("::1", 4000),
    ("::ffff:127.0.0.1", 4000),
    ("fe80::1", 4000),
    ("ff02::fb", 5353),
]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def found(*servers: IceServerRig, trickle: bool, **options: Any) -> AsyncIterator[list[str]]:
    """The candidates of these servers, in the answer and trickled, that a viewer is sent."""
    urls = [f"stun:{one.host}:{one.port}" for one in servers]
    urls += [f"turn:{one.host}:{one.port}?transport=udp" for one in servers]
    listed = [IceServer.model_validate({"urls": urls, "username": "u", "credential": "p"})]
    options |= {"allowed": [one.host for one in servers], "ports": [one.port for one in servers]}
    async with stage() as on, asyncio.timeout(20):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), listed, trickle=trickle, **options)
        if trickle:
            await events.gathered.wait()
        lines = [*answer.splitlines(), *(line for line in events.candidates if line)]
        try:
            yield [line for line in lines if " typ srflx" in line or " typ relay" in line]
        finally:
            await peer.close()
            await viewer.pc.close()


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("address", INVENTED)
async def test_an_invented_address_is_no_candidate(
    address: tuple[str, int], trickle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with ice_server(own_address()) as server:
        server.mapped = server.relayed = address
        async with found(server, trickle=trickle) as candidates:
            assert candidates == []
        await until(lambda: "REFRESH" in server.requests)  # the relay is freed
    host, port = ip_address(address[0]), address[1]  # written differently by Python versions
    assert [record.getMessage() for record in caplog.records] == [
        f"ICE server gave no candidate server='{name}' "
        f"error='the address in its answer cannot be used: {host} port {port}' count=1"
        for name in (f"STUN {server.host}", f"TURN {server.host} over udp")
    ]


async def test_another_server_gives_the_candidates() -> None:
    async with ice_server(own_address()) as rogue, ice_server(own_address()) as honest:
        rogue.mapped = rogue.relayed = ("0.0.0.0", 4000)
        async with found(rogue, honest, trickle=False) as candidates:
            assert {line.split(" typ ")[1].split()[0] for line in candidates} == {"srflx", "relay"}
            assert all("{} {} typ ".format(*GOOD) in line for line in candidates)


async def test_loopback_is_a_candidate_where_the_settings_allow_it() -> None:
    async with ice_server(own_address()) as server:
        server.mapped = server.relayed = ("127.0.0.1", 4000)
        async with found(server, trickle=False, allow_loopback=True) as candidates:
            assert any("127.0.0.1 4000 typ srflx" in line for line in candidates)
            assert any("127.0.0.1 4000 typ relay" in line for line in candidates)
