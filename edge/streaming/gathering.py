"""Query the STUN and TURN servers of a session, all at once."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import ssl
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from aioice.stun import Class, Message, Method, TransactionError

from edge.core.candidate import is_one_machine
from edge.streaming.background import in_background
from edge.streaming.daemon_threads import DaemonThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from aioice.ice import StunProtocol

    from edge.core.log_limit import LogLimit
    from edge.streaming.aiortc_ice import IceAgent
    from edge.streaming.ice_servers import IceServers, StunServer, TurnServer

T = TypeVar("T")

log = logging.getLogger(__name__)

_BETTER_RELAY_S = 0.2
"""How long a relay over TCP or TLS waits for a better one that was asked for at the same time."""

_ODD_ANSWERS = (OSError, TransactionError, LookupError, ValueError, struct.error)
"""What a server that is unreachable, or answers nonsense, makes aioice raise."""

_threads = DaemonThreads(4, "ice-lookup")
"""A name server that does not answer blocks threads. State files are written in others."""


class Gathering:
    """The queries of one session. Event loop only.

    `found` is called for each candidate, as `candidate:...`. `may_reach`: whether an address may be used; the servers
    may answer any. `failures`: limits the log lines, for all sessions.
    """

    def __init__(
        self,
        agent: IceAgent,
        servers: IceServers,
        found: Callable[[str], None],
        may_reach: Callable[[IPv4Address | IPv6Address], bool],
        failures: LogLimit,
    ) -> None:
        self._agent = agent
        self._servers = servers
        self._found = found
        self._may_reach = may_reach
        self._failures = failures
        self._lookups: dict[str, asyncio.Task[list[str]]] = {}
        self._errors: dict[str, Exception] = {}

    async def run(self, *, stun_timeout_s: float, turn_timeout_s: float) -> None:
        """Query every server. Returns when each socket has its public address and the best relay is allocated.

        What did not answer in time is left out.
        """
        hosts = {server.host for server in self._servers.stun} | {server.host for server in self._servers.turn}
        self._lookups = {host: asyncio.create_task(_resolve(host), name=f"lookup:{host}") for host in hosts}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._gather_reflexive(stun_timeout_s), name="stun")
                group.create_task(self._gather_relay(turn_timeout_s), name="turn")
        finally:
            for lookup in self._lookups.values():
                lookup.cancel()
            await asyncio.gather(*self._lookups.values(), return_exceptions=True)

    async def _gather_reflexive(self, timeout_s: float) -> None:
        if not self._servers.stun:
            return
        addresses: set[tuple[str, int]] = set()

        async def query(base: StunProtocol) -> bool:
            queries = {self._ask(base, server): 0 for server in self._servers.stun}
            address = await best_of(queries, timeout_s, grace_s=0, let_go=lambda _: None)
            if address is not None and address not in addresses and not self._agent.settled:
                addresses.add(address)
                for candidate in self._agent.add_reflexive(base, address):
                    self._found(candidate)
            return address is not None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(query(base), name="stun") for base in self._agent.host_sockets]
        if not any(task.result() for task in tasks):
            self._log_failures(self._servers.stun)

    async def _gather_relay(self, timeout_s: float) -> None:
        if not self._servers.turn:
            return
        queries = {self._allocate(server, version): server.rank for server in self._servers.turn for version in (4, 6)}
        relay = await best_of(queries, timeout_s, grace_s=_BETTER_RELAY_S, let_go=_free)
        if relay is None:
            self._log_failures(self._servers.turn)
            return
        candidates = self._agent.add_relay(relay)
        if not candidates:
            _free(relay)
        for candidate in candidates:
            self._found(candidate)

    async def _ask(self, base: StunProtocol, server: StunServer) -> tuple[str, int] | None:
        """The public address of a socket."""
        version = ipaddress.ip_address(base.local_candidate.host).version
        with self._keep_error(server):
            for address in await self._addresses(server.host, version):
                request = Message(message_method=Method.BINDING, message_class=Class.REQUEST)
                response, _ = await base.request(request, (address, server.port))
                host, port = response.attributes["XOR-MAPPED-ADDRESS"]
                self._check(host, port)
                return host, port
        return None

    async def _allocate(self, server: TurnServer, version: int) -> StunProtocol | None:
        with self._keep_error(server):
            for address in await self._addresses(server.host, version):
                tls = await _tls_context() if server.tls else None
                relay = await self._agent.allocate(server, address, tls)
                try:
                    self._check(relay.local_candidate.host, relay.local_candidate.port)
                except ValueError:
                    _free(relay)
                    raise
                return relay
        return None

    def _check(self, host: str, port: int) -> None:
        """Check the address in a server's answer. Raises: ValueError: no viewer may be sent it as a candidate."""
        address = ipaddress.ip_address(host)
        if not is_one_machine(address, port) or not self._may_reach(address):
            raise ValueError(f"the address in its answer cannot be used: {host} port {port}")

    async def _addresses(self, host: str, version: int) -> list[str]:
        """At most one address of an IP version."""
        # Shielded: several queries wait for one lookup.
        found = await asyncio.shield(self._lookups[host])
        return [address for address in found if ipaddress.ip_address(address).version == version][:1]

    @contextmanager
    def _keep_error(self, server: StunServer | TurnServer) -> Iterator[None]:
        """A server may answer anything, and the viewer may connect without it."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001  logged where no other server helps
            self._errors[str(server)] = exc

    def _log_failures(self, servers: Sequence[StunServer | TurnServer]) -> None:
        if self._agent.settled:
            return
        now_s = asyncio.get_running_loop().time()
        for name in dict.fromkeys(map(str, servers)):
            if count := self._failures.due(now_s, name):
                exc = self._errors.get(name)
                expected = exc is None or isinstance(exc, _ODD_ANSWERS)
                log.warning(
                    "ICE server gave no candidate server=%r error=%r count=%d",
                    name,
                    "no answer in time" if exc is None else str(exc) or type(exc).__name__,
                    count,
                    exc_info=None if expected else exc,
                )


async def best_of(
    queries: Mapping[Coroutine[Any, Any, T | None], int],
    timeout_s: float,
    *,
    grace_s: float,
    let_go: Callable[[T], None],
) -> T | None:
    """Run queries side by side; each has a rank, and the lowest is best. None: none had a result in time.

    The first result waits `grace_s` for a better one. `let_go` gets the other results.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    ranks = {asyncio.create_task(query, name="ice-query"): rank for query, rank in queries.items()}
    best: asyncio.Task[T | None] | None = None

    def release(task: asyncio.Task[T | None]) -> None:
        if not task.cancelled() and (result := task.result()) is not None:
            let_go(result)

    try:
        while waiting := [task for task in ranks if not task.done() and (best is None or ranks[task] < ranks[best])]:
            left_s = deadline_s - loop.time()
            if left_s <= 0:
                break
            await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            found = [task for task in ranks if task.done() and task.result() is not None]
            if found and best is None:
                deadline_s = min(deadline_s, loop.time() + grace_s)
            best = min(found, key=ranks.__getitem__, default=None)
    except asyncio.CancelledError:
        best = None
        raise
    finally:
        for task in ranks:
            if task is not best:
                task.cancel()
                task.add_done_callback(release)
    return best.result() if best is not None else None


def _free(relay: StunProtocol) -> None:
    in_background(relay.close(), "free-relay")


async def _resolve(host: str) -> list[str]:
    """The addresses of a server, best first. Raises: OSError: there are none."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    lookup = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    found = await asyncio.get_running_loop().run_in_executor(_threads, lookup)
    return [str(entry[4][0]) for entry in found]


@functools.cache
def make_tls_context() -> ssl.SSLContext:
    """The system's authorities, for TURN over TLS."""
    context = ssl.create_default_context()
    # The default from Python 3.13 on. It would refuse private authorities whose certificates lack some extensions.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def _tls_context() -> ssl.SSLContext:
    # Reading the authorities takes long enough to delay pictures, so a thread does it, once. The threads for names may
    # all be waiting.
    return await asyncio.to_thread(make_tls_context)
