"""Which addresses and ports the device offers to viewers, in a network namespace with chosen interfaces."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from edge.contract.messages import IceServer
from edge.streaming.interfaces import open_sockets, usable_addresses
from edge.streaming.settings import IceSettings
from tests.rigs.coturn import Coturn
from tests.rigs.namespace import Namespace
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGES = 20


@pytest.fixture
def network() -> Iterator[Namespace]:
    with Namespace() as made:
        made.add_interface("eth0", "10.0.0.2/24", "fd00::2/64")
        yield made


def hosts(answer: str) -> list[str]:
    return re.findall(r"^a=candidate:\S+ 1 udp \d+ (\S+) \d+ typ host", answer, re.MULTILINE)


async def connected(**settings: Any) -> tuple[list[str], float]:
    """Connect a viewer at 10.0.0.2. Returns the device's host candidates, and the time from the offer in seconds."""
    async with stage() as on, asyncio.timeout(20):
        viewer, events = Viewer(), Events()
        lines = (await viewer.offer()).splitlines(keepends=True)
        sdp = "".join(line for line in lines if not line.startswith("a=candidate:") or " 10.0.0.2 " in line)
        started_s = asyncio.get_running_loop().time()
        peer, answer = await on.answer(events, sdp, [], trickle=True, **settings)
        await viewer.take(answer)
        await events.live.wait()
        took_s = asyncio.get_running_loop().time() - started_s
        await peer.close()
        await viewer.pc.close()
        return hosts(answer), took_s


def test_twenty_docker_bridges_are_not_offered_and_cost_no_time(network: Namespace) -> None:
    network.add_interface("docker0", "172.17.0.1/16")
    for number in range(BRIDGES):
        network.add_interface(f"br-{number:012x}", f"172.{18 + number}.0.1/16")
    offered, took_s = network.run(connected)
    assert sorted(offered) == ["10.0.0.2", "fd00::2"]
    assert took_s < 1


def test_interfaces_are_allowed_and_denied_by_name(network: Namespace) -> None:
    network.add_interface("wlan0", "10.1.0.2/24")
    network.add_interface("tun0", "10.2.0.2/24")

    async def usable(**interfaces: list[str]) -> list[str]:
        return usable_addresses(IceSettings.model_validate({"interfaces": interfaces}))

    assert sorted(network.run(usable)) == ["10.0.0.2", "10.1.0.2", "10.2.0.2", "fd00::2"]
    assert network.run(lambda: usable(allow=["wlan*"])) == ["10.1.0.2"]
    assert network.run(lambda: usable(allow=["wlan*", "tun0"], deny=["tun*"])) == ["10.1.0.2"]


def test_sockets_use_the_ports_of_the_settings_until_none_is_free(network: Namespace) -> None:
    settings = IceSettings(udp_port_min=50_000, udp_port_max=50_009)

    async def ports() -> list[tuple[str, int]]:
        opened: list[socket.socket] = []
        for _ in range(11):
            opened += open_sockets(settings)
        used = [sock.getsockname()[:2] for sock in opened]
        for sock in opened:
            sock.close()
        return used

    expected = [(address, port) for address in ("10.0.0.2", "fd00::2") for port in range(50_000, 50_010)]
    assert sorted(network.run(ports)) == expected


def test_a_session_connects_by_a_port_of_the_settings(network: Namespace) -> None:
    async def answer() -> str:
        async with stage() as on:
            viewer = Viewer()
            ports = {"udp_port_min": 50_000, "udp_port_max": 50_009}
            peer, answer = await on.answer(Events(), await viewer.offer(), [], trickle=True, **ports)
            await peer.close()
            await viewer.pc.close()
            return answer

    ports = re.findall(r"^a=candidate:\S+ 1 udp \d+ \S+ (\d+) typ host", network.run(answer), re.MULTILINE)
    assert len(ports) == 2
    assert all(50_000 <= int(port) <= 50_009 for port in ports)


@pytest.mark.parametrize("ports", [{"udp_port_min": 50_000}, {"udp_port_min": 50_000, "udp_port_max": 50_001}])
def test_a_port_range_needs_both_ends_and_ten_ports(ports: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        IceSettings.model_validate(ports)


def test_stun_is_asked_from_every_interface_of_the_servers_ip_versions(
    network: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three servers: by its IPv4 address, by a name with only an IPv6 address, and by a name with none."""
    network.add_interface("wlan0", "10.1.0.2/24")
    coturn = Coturn("u", "p", "--listening-ip=fd00::2", host="10.0.0.2", namespace=network)
    lookup = socket.getaddrinfo

    def answer_lookup(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "six.example":
            host = "fd00::2"
        return lookup(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer_lookup)
    urls = [f"stun:{host}:{coturn.port}" for host in ("10.0.0.2", "six.example", "none.invalid")]

    async def answer() -> str:
        async with stage() as on:
            viewer = Viewer()
            servers = [IceServer(urls=urls)]
            peer, answer = await on.answer(
                Events(),
                await viewer.offer(),
                servers,
                trickle=False,
                allowed=["10.0.0.2", "six.example", "none.invalid"],
                ports=[coturn.port],
            )
            await peer.close()
            await viewer.pc.close()
            return answer

    coturn.start()
    try:
        found = re.findall(r" 1 udp \d+ (\S+) \d+ typ srflx", network.run(answer))
    finally:
        coturn.stop()
    assert sorted(found) == ["10.0.0.2", "10.1.0.2", "fd00::2"]
