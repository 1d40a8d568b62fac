"""Malformed STUN at the ports of a real agent: dropped and counted, and the viewer connects."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aioice.stun import ATTRIBUTES
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.messages import IceServer
from tests.rigs.coturn import own_address
from tests.rigs.ice_traffic import attribute, ice_server, message
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Callable, Sequence

    from edge.streaming.peer import Peer

BINDING_REQUEST, BINDING_RESPONSE = 0x0001, 0x0101
USERNAME, PRIORITY, FINGERPRINT, CONTROLLING = 0x0006, 0x0024, 0x8028, 0x802A
CUT_OFF = message(BINDING_REQUEST, attribute(PRIORITY, b"", length=4))

MALFORMED = {
    "no body": message(BINDING_REQUEST, b"", length=40),
    "header cut off": message(BINDING_REQUEST, b"")[:11],
    "one byte": b"\0",
    "attribute cut off": CUT_OFF,
    "attribute too long": message(BINDING_REQUEST, attribute(PRIORITY, bytes(9))),
    "attribute of huge length": message(BINDING_REQUEST, attribute(CONTROLLING, b"\0", length=0xFFFF)),
    "response cut off": message(BINDING_RESPONSE, attribute(PRIORITY, b"")),
    "fingerprint cut off": message(BINDING_REQUEST, attribute(FINGERPRINT, b"\1")),
    "name is not UTF-8": message(BINDING_REQUEST, attribute(USERNAME, b"\xff\xfe")),
    "unknown method": message(0x02EF, b""),
    "longest datagram": message(BINDING_REQUEST, attribute(PRIORITY, bytes(60_000))),
}
NOT_STUN = {
    "first bits of RTP": message(0x8001, attribute(PRIORITY, b"")),
    "first bits of DTLS": message(0x1401, attribute(PRIORITY, b"")),
    "first bits of TURN": message(0x4001, attribute(PRIORITY, b"")),
}

attributes = st.builds(
    attribute,
    st.sampled_from([kind for kind, *_ in ATTRIBUTES]) | st.integers(0, 0xFFFF),
    st.binary(max_size=24),
    length=st.none() | st.integers(0, 0xFFFF),
)
datagrams = st.one_of(
    st.tuples(st.integers(0, 255), st.binary(max_size=80)).map(lambda parts: bytes([parts[0]]) + parts[1]),
    st.builds(
        message,
        st.integers(0, 0xFFFF) | st.sampled_from([BINDING_REQUEST, BINDING_RESPONSE]),
        st.lists(attributes, max_size=4).map(b"".join),
        length=st.none() | st.integers(0, 0xFFFF),
    ),
)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


class Attacked:
    """A peer, and a stranger who sends to its ports."""

    def __init__(self, peer: Peer, counters: Counter[str]) -> None:
        self.counters = counters
        self._peer = peer

    async def send(self, sent: Sequence[bytes]) -> None:
        """Return when the peer has received the first of them at least, and a malformed message."""
        ports = [socket.transport.get_extra_info("sockname") for socket in self._peer._agent.host_sockets]
        ports = [address for address in ports if ":" not in address[0]]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for address in ports:
                for datagram in sent:
                    stranger.sendto(datagram, address)
                    await asyncio.sleep(0)
                counted = self.counters["stun_malformed"]
                stranger.sendto(CUT_OFF, address)
                await until(lambda before=counted: self.counters["stun_malformed"] > before)  # type: ignore[misc]


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Attacked, Callable[[], Any]]]:
    """A peer that has answered, and what connects its viewer. Errors in the event loop fail the test."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with stage() as on, asyncio.timeout(20):
        viewer, events = Viewer(), Events()
        peer, answer = await on.answer(events, await viewer.offer(), [], trickle=True)

        async def connect() -> None:
            await viewer.take(answer)
            await events.live.wait()
            await viewer.pts.get()

        try:
            yield Attacked(peer, on.counters), connect
        finally:
            await peer.close()
            await viewer.pc.close()
    assert errors == []


@pytest.mark.parametrize("kind", [*MALFORMED, *NOT_STUN])
async def test_a_malformed_message_is_dropped_and_the_viewer_connects(kind: str) -> None:
    async with attacked() as (peer, connect):
        await peer.send([{**MALFORMED, **NOT_STUN}[kind]] * 3)
        await connect()


async def test_malformed_messages_are_counted_before_and_after_the_connection() -> None:
    async with attacked() as (peer, connect):
        await peer.send([])
        ports = peer.counters["stun_malformed"]
        await peer.send(list(MALFORMED.values()))
        await until(lambda: peer.counters["stun_malformed"] == ports * (len(MALFORMED) + 2))
        await connect()
        await peer.send([*MALFORMED.values(), *NOT_STUN.values()])
        await until(lambda: peer.counters["stun_malformed"] == ports * (2 * len(MALFORMED) + 3))


@settings(max_examples=8)
@given(st.lists(datagrams, min_size=30, max_size=60))
def test_no_datagram_disturbs_a_connection(sent: list[bytes]) -> None:
    async def play() -> None:
        async with attacked() as (peer, connect):
            await peer.send(sent)
            await connect()
            await peer.send(sent)

    asyncio.run(play())


async def test_a_malformed_message_of_a_turn_server_is_dropped() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with ice_server(own_address()) as server, stage() as on:
        server.disturb = lambda _: CUT_OFF
        url = f"turn:{server.host}:{server.port}?transport=udp"
        servers = [IceServer.model_validate({"urls": url, "username": "u", "credential": "p"})]
        viewer = Viewer()
        peer, answer = await on.answer(
            Events(), await viewer.offer(), servers, trickle=False, allowed=[server.host], ports=[server.port]
        )
        assert answer.count("192.0.2.1 4000 typ relay") == 1
        assert on.counters["stun_malformed"] == len(server.requests)
        await peer.close()
        await viewer.pc.close()
    assert errors == []
