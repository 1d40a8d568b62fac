"""Viewers that offer only `.local` names, to a device that their own checks do not reach."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import dns.message
import pytest

from edge.core.candidate import read_local_name
from edge.streaming import local_names
from edge.streaming import peer as peer_module
from edge.streaming.local_names import resolve_local
from tests.rigs.namespace import Namespace
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP, PORT = "224.0.0.251", 5353
# Recorded from Chromium 156: the answer for an IPv4 address, and for an IPv6 address. The NSEC records are compressed.
IPV4 = (
    "0000840000000001000000012431306332633830322d303532662d346363652d626361362d333037373839313064663234056c6f63616c"
    "0000018001000000780004c00002022431306332633830322d303532662d346363652d626361362d333037373839313064663234056c6f"
    "63616c00002f8001000000780005c046000140"
)
IPV6 = (
    "0000840000000001000000012432343565643433332d316537332d346231392d616632622d313134356638356261616664056c6f63616c"
    "00002f8001000000780008c00c0004000000082432343565643433332d316537332d346231392d616632622d3131343566383562616166"
    "64056c6f63616c00001c8001000000780010fd000000000000000000000000000002"
)
IPV4_NAME = "10c2c802-052f-4cce-bca6-30778910df24.local"
IPV6_NAME = "245ed433-1e73-4b19-af2b-1145f85baafd.local"
ADDRESS = "192.0.2.2"


@pytest.fixture
def network() -> Iterator[Namespace]:
    with Namespace() as made:
        made.add_interface("eth0", f"{ADDRESS}/24")
        made.ip("route", "add", "224.0.0.0/4", "dev", "eth0")
        yield made


class Responder(asyncio.DatagramProtocol):
    """Answers any query with a packet of Chromium, after some that are damaged."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if struct.unpack("!H", data[2:4]) == (0,):  # a query
            for packet in (b"", b"\xff" * 40, self._answer[:20], self._answer):
                self._transport.sendto(packet, (GROUP, PORT))


@contextmanager
def multicast_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", PORT))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + bytes(4))
        sock.setblocking(False)
        yield sock


async def resolved(name: str, answer: str) -> str | None:
    with multicast_socket() as sock:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Responder(bytes.fromhex(answer)), sock=sock)
        try:
            return await resolve_local(name)
        finally:
            transport.close()


def test_the_names_of_chromium_are_resolved(network: Namespace) -> None:
    assert network.run(lambda: resolved(IPV4_NAME, IPV4)) == ADDRESS
    assert network.run(lambda: resolved(IPV6_NAME, IPV6)) == "fd00::2"


def test_a_name_that_nobody_has_is_not_resolved(network: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_names, "_TIMEOUT_S", 0.05)
    assert network.run(lambda: resolved("other.local", IPV4)) is None
    with Namespace() as without_interfaces:
        assert without_interfaces.run(lambda: resolve_local("other.local")) is None


def test_a_flood_of_messages_is_not_parsed(network: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = dns.message.from_wire

    def from_wire(data: bytes, **options: Any) -> object:
        parsed.append(data)
        return real(data, **options)

    async def flooded() -> str | None:
        lookup = asyncio.create_task(resolve_local(IPV4_NAME))
        label = IPV4_NAME.partition(".")[0].encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(300):
                await asyncio.sleep(0)
                for junk in (b"\0" * 100, label + bytes(9000), label.upper() + bytes(100)):
                    sender.sendto(junk, (ADDRESS, PORT))
                if number % 10 == 0:
                    await asyncio.sleep(0.001)
        return await lookup

    monkeypatch.setattr(local_names, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(dns.message, "from_wire", from_wire)
    assert network.run(flooded) is None
    assert 0 < len(parsed) <= 2 * 16, "aioice parses each once more"
    assert max(map(len, parsed)) <= 512


async def test_without_a_free_descriptor_a_name_is_not_resolved() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert await resolve_local("other.local") is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def connect_by_name(*, trickled: bool) -> str | None:
    """The viewer does not get the device's candidates, as if a firewall kept its checks from the device."""
    with multicast_socket() as sock:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Responder(bytes.fromhex(IPV4)), sock=sock)
        async with stage() as on, asyncio.timeout(10):
            viewer, events = Viewer(), Events()
            lines = (await viewer.offer()).replace(f" {ADDRESS} ", f" {IPV4_NAME} ").splitlines(keepends=True)
            names = [name for line in lines if (name := read_local_name(line.strip()))]
            sdp = "".join(line for line in lines if not (trickled and IPV4_NAME in line))
            peer, answer = await on.answer(events, sdp, [], trickle=True)
            await viewer.take(re.sub(r"^a=candidate:.*\r\n", "", answer, flags=re.MULTILINE))
            if trickled:
                peer.add_local_name(names[0])
            await events.live.wait()
            path = peer.path
            await peer.close()
            await viewer.pc.close()
        transport.close()
        return path


@pytest.mark.parametrize("trickled", [False, True])
def test_a_viewer_with_only_a_name_is_reached_from_behind_a_firewall(network: Namespace, trickled: bool) -> None:
    assert network.run(lambda: connect_by_name(trickled=trickled)) == "host/host"


async def connect_while_the_name_is_looked_up() -> str | None:
    async with stage() as on, asyncio.timeout(10):
        viewer, events = Viewer(), Events()
        offered = await viewer.offer()
        reflexive = r"\g<0>a=candidate:9 1 udp 1694498815 \2 \3 typ srflx raddr 0.0.0.0 rport 0\r\n"
        sdp = re.sub(r"(a=candidate:.*) ([0-9.]+) (\d+) typ host\r\n", reflexive, offered)
        sdp = re.sub(rf" {ADDRESS} (\d+ typ host)", rf" {IPV4_NAME} \1", sdp)
        peer, answer = await on.answer(events, sdp, [], trickle=True)
        await viewer.take(re.sub(r"^a=candidate:.*\r\n", "", answer, flags=re.MULTILINE))
        await events.live.wait()
        path = peer.path
        await peer.close()
        await viewer.pc.close()
        return path


def test_checks_to_server_reflexive_candidates_do_not_wait_for_names(
    network: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(peer_module, "resolve_local", never)
    assert network.run(connect_while_the_name_is_looked_up) == "host/srflx"


@pytest.mark.parametrize("address", ["224.0.0.251", "0.0.0.0", "fe80::1%eth0", "::1%lo"])
def test_addresses_that_cannot_be_used_are_left_out(address: str) -> None:
    name = read_local_name(f"candidate:1 1 udp 2122260223 {IPV4_NAME} 50000 typ host")
    assert name is not None
    assert name.at(address) is None
    assert name.at(ADDRESS) is not None


@pytest.mark.parametrize(
    "line",
    [
        "candidate:1 1 tcp 2122260223 a.local 50000 typ host",
        "candidate:1 2 udp 2122260223 a.local 50000 typ host",
        "candidate:1 1 udp 2122260223 a.b.local 50000 typ host",
        "candidate:1 1 udp 2122260223 a.example 50000 typ host",
        "candidate:1 1 udp 2122260223 192.0.2.2 50000 typ host",
        "candidate:1 1 udp 2122260223 a.local 0 typ host",
        "candidate:1 1 udp 9999999999 a.local 50000 typ host",
    ],
)
def test_other_lines_are_no_local_names(line: str) -> None:
    assert read_local_name(line) is None
