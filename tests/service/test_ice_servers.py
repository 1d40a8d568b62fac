"""The ICE servers of an offer: which are used, and queries to all of them at once, with a real coturn."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.contract.messages import IceServer
from edge.core.access_unit import Quality
from edge.errors import Rejected
from edge.streaming import gathering
from edge.streaming.daemon_threads import DaemonThreads
from edge.streaming.gathering import best_of
from edge.streaming.ice_servers import IceServers, read_ice_servers
from edge.streaming.settings import IceSettings
from tests.rigs.certificates import Authority
from tests.rigs.coturn import Coturn
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

AWS = {
    "Uris": [
        "turn:44-234-1-2.t-1a2b3c4d.kinesisvideo.us-west-2.amazonaws.com:443?transport=udp",
        "turns:44-234-1-2.t-1a2b3c4d.kinesisvideo.us-west-2.amazonaws.com:443?transport=udp",
        "turns:44-234-1-2.t-1a2b3c4d.kinesisvideo.us-west-2.amazonaws.com:443?transport=tcp",
    ],
    "Username": "1626891838:djE6YXJuOmF3czpraW5lc2lzdmlkZW8",
    "Password": "hunter2",
    "Ttl": 300,
}


def read(*servers: dict[str, Any], allowed: list[str], ports: tuple[int, ...] = ()) -> IceServers:
    return read_ice_servers([IceServer.model_validate(server) for server in servers], allowed, ports)


@pytest.mark.parametrize(
    ("server", "code"),
    [
        ({"urls": "turn:evil.example:3478", "username": "u", "credential": "hunter2"}, Code.FORBIDDEN),
        ({"urls": ["turn:evil.example", "http://turn.example"]}, Code.FORBIDDEN),
        ({"urls": "turn:turn.example"}, Code.BAD_MESSAGE),
        ({"urls": "turn:u:hunter2@turn.example"}, Code.BAD_MESSAGE),
        ({"urls": "stun:turn.example:99999"}, Code.BAD_MESSAGE),
        ({"urls": "turns:turn.example?transport=udp", "username": "u", "credential": "hunter2"}, Code.BAD_MESSAGE),
    ],
)
def test_an_offer_is_refused_if_none_of_its_servers_can_be_used(server: dict[str, Any], code: Code) -> None:
    with pytest.raises(Rejected) as caught:
        read(server, allowed=["turn.example"])
    assert caught.value.code is code
    assert "hunter2" not in caught.value.message


def test_servers_that_cannot_be_used_are_left_out_and_named_without_secrets() -> None:
    urls = ["stun:evil.example", "stun:u:hunter2@turn.example", "stun:turn.example"]
    urls += [f"turns:turn.example:{443 + number}" for number in range(5)]
    server, ports = {"urls": urls, "username": "u", "credential": "hunter2"}, (444, 445, 446, 447)
    servers = read(server, allowed=["turn.example"], ports=ports)
    assert [one.host for one in servers.stun] == ["turn.example"]
    assert [one.port for one in servers.turn] == [443, 444, 445, 446]
    assert [(one.server, one.reason) for one in servers.left_out] == [
        ("evil.example", "not_allowed"),
        ("ice_servers.0.urls.1", "malformed"),
        ("turn.example", "too_many"),
    ]


@pytest.mark.parametrize("url", ["stun:turn.example", "turn:turn.example", "turns:turn.example"])
@pytest.mark.parametrize("port", [25, 53, 79, 1883, 3479, 8081])
def test_a_port_that_is_neither_usual_nor_in_the_settings_is_forbidden(url: str, port: int) -> None:
    server = {"urls": f"{url}:{port}", "username": "u", "credential": "p"}
    with pytest.raises(Rejected, match=f"turn.example:{port} is not in this device's ice.allowed_ports") as caught:
        read(server, allowed=["turn.example"])
    assert caught.value.code is Code.FORBIDDEN
    assert read(server, allowed=["turn.example"], ports=(port,)).left_out == ()


def test_usual_ports_are_allowed() -> None:
    urls = [f"turn:turn.example:{port}" for port in (80, 443, 3478, 5349)]
    servers = read({"urls": urls, "username": "u", "credential": "p"}, allowed=["turn.example"])
    assert [turn.port for turn in servers.turn] == [80, 443, 3478, 5349]


async def test_servers_that_are_left_out_are_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    urls = [f"stun:evil{number}.example" for number in range(5)]
    urls += ["stun:u:hunter2@turn.example", "turns:turn.example?transport=udp", "stun:turn.example"]
    async with stage() as on:
        servers = [IceServer.model_validate({"urls": urls, "username": "u", "credential": "hunter2"})]
        peer = on.factory(IceSettings(allowed_hosts=["turn.example"]))(Events(), servers, Quality.HD)
        assert len(peer.ice_servers_left_out) == 7
        await peer.close()
    assert [record.getMessage() for record in caplog.records] == [
        "ICE server left out server='evil0.example' reason=not_allowed count=1",
        "ICE server left out server='ice_servers.0.urls.5' reason=malformed count=1",
    ]


def test_an_offer_without_servers_is_not_refused() -> None:
    assert read(allowed=[]) == IceServers()


def test_turn_servers_are_ranked_udp_tcp_tls() -> None:
    urls = ["turns:t.example?transport=tcp", "turn:t.example?transport=tcp", "turn:t.example", "stun:t.example"]
    servers = read({"urls": urls, "username": "u", "credential": "p"}, allowed=["t.example"])
    assert [(turn.rank, turn.kind, turn.port) for turn in servers.turn] == [
        (0, "udp", 3478),
        (1, "tcp", 3478),
        (2, "tls", 5349),
    ]
    assert len(servers.stun) == 1


@pytest.mark.parametrize(
    ("entry", "host", "allowed"),
    [
        (".example.org", "a.b.example.org", True),
        (".example.org", "EXAMPLE.org.", True),
        (".example.org", "badexample.org", False),
        (".example.org", "example.org.evil.net", False),
        ("example.org", "a.example.org", False),
        ("2001:db8::1", "[2001:DB8:0::1]", True),
    ],
)
def test_an_entry_with_a_leading_dot_allows_all_hosts_below_a_domain(entry: str, host: str, allowed: bool) -> None:
    if allowed:
        assert read({"urls": f"stun:{host}"}, allowed=[entry]).stun
    else:
        with pytest.raises(Rejected):
            read({"urls": f"stun:{host}"}, allowed=[entry])


@pytest.mark.parametrize("entry", [".", ".com", "turn:turn.example", "https://turn.example", "*.example.org", ""])
def test_entries_that_are_no_hosts_are_faults_of_the_settings(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        IceSettings(allowed_hosts=["turn.example", entry])


def test_the_servers_that_aws_returns_are_used() -> None:
    servers = read(AWS, allowed=[".kinesisvideo.us-west-2.amazonaws.com"])
    assert [(turn.kind, turn.port) for turn in servers.turn] == [("udp", 443), ("tls", 443)]
    assert servers.turn[0].username == AWS["Username"]
    assert servers.turn[0].password.get_secret_value() == "hunter2"
    assert [one.reason for one in servers.left_out] == ["unsupported"]


class Results:
    """Queries whose results a test chooses. `freed`: the results that were let go."""

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[str | None]] = {}
        self.freed: list[str] = []

    async def query(self, name: str) -> str | None:
        self.asked[name] = asyncio.get_running_loop().create_future()
        return await self.asked[name]

    def best(self, timeout_s: float, grace_s: float) -> Coroutine[None, None, str | None]:
        queries = {self.query("udp"): 0, self.query("tcp"): 1, self.query("tls"): 2}
        return best_of(queries, timeout_s, grace_s=grace_s, let_go=self.freed.append)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_better_result_within_the_grace_time_is_kept_and_the_others_let_go() -> None:
    results = Results()
    best = asyncio.create_task(results.best(20, 20))
    await settled()
    results.asked["tls"].set_result("over tls")
    await settled()
    results.asked["tcp"].set_result("over tcp")
    await settled()
    assert not best.done()
    results.asked["udp"].set_result("over udp")
    assert await best == "over udp"
    await settled()
    assert sorted(results.freed) == ["over tcp", "over tls"]


async def test_a_result_is_returned_as_soon_as_no_better_one_can_come() -> None:
    results = Results()
    best = asyncio.create_task(results.best(20, 20))
    await settled()
    results.asked["udp"].set_result(None)
    results.asked["tcp"].set_result("over tcp")
    assert await best == "over tcp"
    await settled()
    assert results.asked["tls"].cancelled()


async def test_a_result_in_hand_is_returned_at_the_deadline() -> None:
    results = Results()
    best = asyncio.create_task(results.best(0.01, 20))
    await settled()
    results.asked["tls"].set_result("over tls")
    assert await best == "over tls"
    results = Results()
    assert await results.best(0.01, 20) is None


async def test_a_cancelled_search_lets_go_of_everything() -> None:
    results = Results()
    best = asyncio.create_task(results.best(20, 20))
    await settled()
    results.asked["tls"].set_result("over tls")
    await settled()
    best.cancel()
    await asyncio.wait({best})
    await settled()
    assert results.freed == ["over tls"]
    assert results.asked["udp"].cancelled()


@contextmanager
def running(*flags: str) -> Iterator[Coturn]:
    server = Coturn("u", "p", *flags)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def without_udp() -> Iterator[Coturn]:
    """A server whose network drops UDP."""
    with running("--no-udp") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((server.host, server.port))  # nothing answers, not even ICMP
        yield server


def all_kinds(server: Coturn) -> list[IceServer]:
    urls = [f"stun:{server.host}:{server.port}"]
    urls += [f"turn:{server.host}:{server.port}?transport={transport}" for transport in ("udp", "tcp")]
    return [IceServer.model_validate({"urls": urls, "username": "u", "credential": "p"})]


def only(server: Coturn) -> dict[str, Any]:
    """The settings that allow this server."""
    return {"allowed": [server.host], "ports": [server.port]}


async def test_where_udp_is_dropped_a_complete_answer_has_a_relay_over_tcp() -> None:
    with without_udp() as server:
        async with stage() as on:
            viewer = Viewer()
            offer, options = await viewer.offer(), {**only(server), "trickle": False, "gather_timeout_s": 0.3}
            async with asyncio.timeout(2.5):
                peer, answer = await on.answer(Events(), offer, all_kinds(server), **options)
            assert answer.count(" typ relay ") == 1
            await peer.close()
            await viewer.pc.close()


async def test_where_udp_is_dropped_a_trickled_relay_follows_within_a_second() -> None:
    with without_udp() as server:
        async with stage() as on:
            viewer, events = Viewer(), Events()
            offer = await viewer.offer()
            peer, _ = await on.answer(events, offer, all_kinds(server), trickle=True, **only(server))
            async with asyncio.timeout(1):
                while not any(line and " typ relay " in line for line in events.candidates):
                    await asyncio.sleep(0.01)
            await peer.close()
            await viewer.pc.close()


async def test_of_several_relays_one_is_kept() -> None:
    with running() as server:
        async with stage() as on:
            viewer = Viewer()
            offer = await viewer.offer()
            peer, answer = await on.answer(Events(), offer, all_kinds(server), trickle=False, **only(server))
            assert answer.count(" typ relay ") == 1
            await peer.close()
            await viewer.pc.close()


async def test_a_relay_over_tls_checks_the_servers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    authority = Authority(tmp_path)
    certificate, key = authority.issue("turn")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    gathering.make_tls_context.cache_clear()
    lookup = socket.getaddrinfo
    server = Coturn("u", "p", f"--cert={certificate}", f"--pkey={key}", f"--tls-listening-port={port}")

    def answer_lookup(_: str, *arguments: Any, **options: Any) -> Any:
        return lookup(server.host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer_lookup)
    server.start()
    try:
        async with stage() as on:
            for name, relays in (("localhost", 1), ("other.example", 0)):
                viewer = Viewer()
                servers = [
                    IceServer.model_validate({"urls": f"turns:{name}:{port}", "username": "u", "credential": "p"})
                ]
                peer, answer = await on.answer(
                    Events(), await viewer.offer(), servers, trickle=False, allowed=[name], ports=[port]
                )
                assert answer.count(" typ relay ") == relays
                await peer.close()
                await viewer.pc.close()
    finally:
        server.stop()
        gathering.make_tls_context.cache_clear()


async def test_a_name_server_that_does_not_answer_costs_only_its_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup, answered = socket.getaddrinfo, asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer_lookup(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "slow.example":
            asyncio.run_coroutine_threadsafe(answered.wait(), loop).result(20)
        return lookup(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer_lookup)
    with running() as server:
        async with stage() as on:
            viewer = Viewer()
            servers = [IceServer(urls="stun:slow.example"), *all_kinds(server)]
            options = {"allowed": ["slow.example", server.host], "ports": [server.port], "gather_timeout_s": 0.3}
            peer, answer = await on.answer(Events(), await viewer.offer(), servers, trickle=False, **options)
            assert set(re.findall(r" typ (srflx|relay) ", answer)) == {"srflx", "relay"}
            answered.set()
            await peer.close()
            await viewer.pc.close()


WITH_A_LOOKUP_AT_EXIT = """
import asyncio, socket, threading, time
from edge.streaming import gathering

started = threading.Event()

def never(*_, **__):
    started.set()
    time.sleep(60)

async def main():
    socket.getaddrinfo = never
    lookup = asyncio.create_task(gathering._resolve("slow.example"))
    while not started.is_set():
        await asyncio.sleep(0.01)
    lookup.cancel()

asyncio.run(main())
"""


def test_the_process_ends_while_a_name_server_does_not_answer() -> None:
    subprocess.run([sys.executable, "-c", WITH_A_LOOKUP_AT_EXIT], check=True, timeout=20)


async def test_lookups_share_their_threads_and_pass_on_errors() -> None:
    threads, free = DaemonThreads(2, "test"), threading.Event()
    waiting = [threads.submit(free.wait, 5) for _ in range(2)]
    skipped, failing, last = threads.submit(free.clear), threads.submit(int, "x"), threads.submit(int, "7", base=8)
    assert skipped.cancel()
    free.set()
    assert [call.result(5) for call in waiting] == [True, True]
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(5)
    assert last.result(5) == 7
    assert free.is_set()
