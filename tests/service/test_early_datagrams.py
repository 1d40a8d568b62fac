"""Datagrams that arrive at a viewer's port before the viewer is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.test_malformed_stun import attacked

if TYPE_CHECKING:
    from tests.service.test_malformed_stun import Attacked

KINDS = {"DTLS": b"\x16\xfe\xfd", "RTP": b"\x80\x60\x00", "TURN": b"\x40\x00\x00"}


def waiting(peer: Attacked) -> int:
    return peer._peer._agent._connection._queue.qsize()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_strangers_datagrams_are_limited_and_counted_and_the_viewer_connects(kind: str) -> None:
    async with attacked() as (peer, connect):
        await peer.send([])
        ports = peer.counters["stun_malformed"]
        await peer.send([KINDS[kind] + bytes(100)] * 200)
        assert waiting(peer) == 64
        assert peer.counters["datagrams_dropped"] == 200 * ports - 64
        await connect()
        assert waiting(peer) < 64


async def test_early_datagrams_of_a_viewer_are_kept() -> None:
    async with attacked() as (peer, connect):
        await peer.send([])
        ports = peer.counters["stun_malformed"]
        count = 60 // ports
        await peer.send([KINDS["DTLS"]] * count)
        assert waiting(peer) == count * ports
        await connect()
        await peer.send([KINDS["RTP"] + bytes(100)] * 200)
        assert peer.counters["datagrams_dropped"] == 0
