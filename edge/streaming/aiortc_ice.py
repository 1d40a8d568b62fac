"""The agent's connection to a viewer: all use of private parts of aioice, for ICE and TURN.

Written against aioice 0.13 and aiortc 1.16, to which pyproject.toml pins them. aiortc_rtp.py has the parts for RTP.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aioice.candidate import Candidate as IceCandidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import CandidatePair, Connection, StunProtocol
from aioice.stun import Class, parse_message

absent: str | None = None
"""The part of aioice that cannot be imported; None: all can."""
try:
    from aioice import turn
    from aioice.stun import TransactionFailed
    from aioice.turn import (
        DEFAULT_ALLOCATION_LIFETIME,
        TurnClientMixin,
        TurnClientTcpProtocol,
        TurnClientUdpProtocol,
        TurnStreamMixin,
        TurnTransport,
    )
except ImportError as exc:
    absent = str(exc)

if TYPE_CHECKING:
    import ssl
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator

    from aioice.stun import Message
    from aiortc import RTCPeerConnection

    from edge.core.candidate import Candidate
    from edge.streaming.ice_servers import TurnServer


CHANNEL_REFRESH_S = 240
"""A channel lives for 10 minutes, but the permission that it carries only for 5 (RFC 8656, 9 and 12)."""

if absent is None:
    # aioice compares the age of channels by the wall clock. After it was set back, no channel would be refreshed.
    turn.time = SimpleNamespace(time=time.monotonic)  # type: ignore[assignment,attr-defined]


_AFTER_STUN = b"\x04"
"""A STUN message begins with 0 to 3; DTLS and RTP do not. Source: RFC 7983, 7."""


_UNREAD_LIMIT = 64
"""Datagrams that wait for DTLS. It reads none before a pair is chosen; a viewer's handshake may begin earlier."""


class _Port(StunProtocol):
    """A socket or a relay that drops malformed STUN messages, and other datagrams when too many wait.

    Anybody can send them. For some malformed messages, aioice raises an exception in the event loop. It queues
    everything else as data, without a limit.
    """

    def __init__(self, connection: Connection, counters: Counter[str]) -> None:
        super().__init__(connection)
        self._counters = counters

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        assert isinstance(data, bytes)
        if data[:1] >= _AFTER_STUN:
            if self.receiver._queue.qsize() >= _UNREAD_LIMIT:
                self._counters["datagrams_dropped"] += 1
                return
            self.receiver.data_received(data, self.local_candidate.component)
            return
        try:
            self._check(parse_message(data), addr)
        except (ValueError, struct.error):
            self._counters["stun_malformed"] += 1
            return
        super().datagram_received(data, addr)

    def _check(self, message: Message, addr: tuple[Any, ...]) -> None:
        """Raises: ValueError: a check without the priority that aioice reads for a new candidate of the viewer."""
        if message.message_class is not Class.REQUEST or "PRIORITY" in message.attributes:
            return
        if not any((one._network_host, one.port) == addr[:2] for one in self.receiver._remote_candidates):
            raise ValueError("a check from a new address has no PRIORITY")


def _drop_malformed(receive: Callable[[bytes, Any], None], counters: Counter[str]) -> Callable[[bytes, Any], None]:
    """Wrap a TURN client's `datagram_received`: it drops some malformed messages, and raises for others."""

    def datagram_received(data: bytes, addr: Any) -> None:  # noqa: ANN401  asyncio's
        try:
            receive(data, addr)
        except struct.error:
            counters["stun_malformed"] += 1

    return datagram_received


class IceAgent:
    """The ICE connection of a peer; candidates can be added while it runs.

    aiortc gathers once, before its answer: here, host candidates only. Candidates of STUN and TURN servers are added to
    the running agent.
    `counters` counts `stun_malformed` and `datagrams_dropped`: messages and other datagrams of anybody.
    """

    def __init__(self, pc: RTCPeerConnection, counters: Counter[str]) -> None:
        self._counters = counters
        self._pc: Any = pc
        self._transport = pc.getTransceivers()[0].receiver.transport.transport
        self._connection: Connection = self._transport._connection

    async def use_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Make host candidates of these sockets, in place of those that aiortc would open. Call it before it gathers.

        The agent closes the sockets.
        """
        connection, loop = self._connection, asyncio.get_running_loop()
        connection._local_candidates_start = True
        for sock in sockets:
            _, protocol = await loop.create_datagram_endpoint(lambda: _Port(connection, self._counters), sock=sock)
            protocol.local_candidate = _local("host", sock.getsockname())
            connection._protocols.append(protocol)
            connection._local_candidates.append(protocol.local_candidate)
        connection._local_candidates_end = True
        if connection._closing:
            for opened in connection._protocols:
                opened.transport.close()

    async def add_remote(self, candidate: Candidate) -> None:
        """Add a candidate of the viewer's. No end mark is ever added: the session's deadline ends a failing search."""
        await self._connection.add_remote_candidate(
            IceCandidate(
                foundation=candidate.foundation,
                component=1,
                transport="udp",
                priority=candidate.priority,
                host=candidate.host,
                port=candidate.port,
                type=candidate.type,
            ),
        )

    @property
    def host_sockets(self) -> list[StunProtocol]:
        """The sockets of the host candidates."""
        return [protocol for protocol in self._connection._protocols if protocol.local_candidate.type == "host"]

    def add_reflexive(self, base: StunProtocol, address: tuple[str, int]) -> list[str]:
        """Add an address that a STUN server reported for a socket. Returns the candidate, as `candidate:...`."""
        found = _local("srflx", address, base=base.local_candidate)
        self._connection._local_candidates.append(found)
        return [f"candidate:{found.to_sdp()}"]

    async def allocate(self, server: TurnServer, address: str, tls: ssl.SSLContext | None) -> StunProtocol:
        """Allocate a relay on a TURN server, which has this address. The caller adds or closes it. `tls`: for TLS.

        Raises: OSError, aioice.stun.TransactionError: no allocation. Use a timeout.
        """
        loop, peer = asyncio.get_running_loop(), (address, server.port)
        kind = TurnClientTcpProtocol if server.transport == "tcp" else TurnClientUdpProtocol
        password = server.password.get_secret_value()

        def client() -> Any:  # noqa: ANN401  one of two classes of aioice
            made: Any = kind(peer, server.username, password, DEFAULT_ALLOCATION_LIFETIME, CHANNEL_REFRESH_S)
            made.datagram_received = _drop_malformed(made.datagram_received, self._counters)
            return made

        inner: asyncio.BaseTransport
        if server.transport == "tcp":
            options: Any = {"ssl": tls, "server_hostname": server.host} if server.tls else {}
            inner, protocol = await loop.create_connection(client, *peer, **options)
        else:
            inner, protocol = await loop.create_datagram_endpoint(client, remote_addr=peer)
        try:
            relay, transport = _Port(self._connection, self._counters), TurnTransport(protocol)
            await transport._connect(relay)
            found = transport.get_extra_info("sockname")
            relay.local_candidate = _local("relay", found)
            related = transport.get_extra_info("related_address")
            relay.local_candidate.related_address, relay.local_candidate.related_port = related
        except BaseException:
            inner.close()
            raise
        return relay

    def add_relay(self, relay: StunProtocol) -> list[str]:
        """Pair a relay with the viewer's candidates and return its own. If `settled`: do nothing, return none."""
        connection = self._connection
        if self.settled:
            return []
        connection._protocols.append(relay)
        for remote in connection._remote_candidates:
            connection._pair_remote_candidate(remote)
        connection.sort_check_list()
        connection._local_candidates.append(relay.local_candidate)
        if self._transport.state == "new":
            # aiortc does not connect if there is no candidate when it has gathered.
            self._connecting = asyncio.create_task(self._pc._RTCPeerConnection__connect(), name="connect")
        return [f"candidate:{relay.local_candidate.to_sdp()}"]

    def has_link_local(self, version: int) -> bool:
        """Return whether a socket of the agent is in a link-local network of this IP version, once it has gathered."""
        hosts = (ipaddress.ip_address(one.host) for one in self._connection._local_candidates if one.type == "host")
        return any(host.version == version and host.is_link_local for host in hosts)

    @property
    def settled(self) -> bool:
        """Whether a pair was chosen or the agent closed, so that it needs no more candidates."""
        return bool(self._connection._closing or self._connection._check_list_done)

    @property
    def relay_lost(self) -> bool:
        """Whether the chosen pair uses a relay that its TURN server has ended or does not refresh."""
        pair = self._connection._nominated.get(1)
        transport: Any = pair.protocol.transport if pair else None
        return isinstance(transport, TurnTransport) and _client(transport).transport.is_closing()

    @property
    def path(self) -> str | None:
        """The types of the chosen pair as `local/remote`; None: no pair was chosen yet."""
        pair = self._connection._nominated.get(1)
        return f"{pair.local_candidate.type}/{pair.remote_candidate.type}" if pair else None


def _client(transport: TurnTransport) -> Any:  # noqa: ANN401  one of two classes of aioice
    inner: Any = transport
    return inner._TurnTransport__inner_protocol


def _local(kind: str, address: tuple[Any, ...], base: IceCandidate | None = None) -> IceCandidate:
    """A candidate of this device. `base`: the host candidate behind a NAT. Source: RFC 8445, 5.1.1.3."""
    return IceCandidate(
        foundation=candidate_foundation(kind, "udp", base.host if base else address[0]),
        component=1,
        transport="udp",
        priority=candidate_priority(1, kind),
        host=address[0],
        port=address[1],
        type=kind,
        related_address=base.host if base else None,
        related_port=base.port if base else None,
    )


class Relay:
    """Sends through a TURN server without aioice's task per datagram, and with a limit on what waits."""

    _WAITING_BYTES = 64 * 1024
    """A third of a second at 1.5 Mbit/s."""
    _UNSENT_BYTES = 32 * 1024
    _BIND_RETRY_S = 1.0

    def __init__(self, transport: TurnTransport, address: tuple[str, int]) -> None:
        self._transport = transport
        self._address = address
        self._protocol = _client(transport)
        self._bind_at_s = 0.0
        inner: Any = transport
        self._tasks: set[asyncio.Task[None]] = inner._TurnTransport__send_tasks  # cancelled when the relay is closed
        if isinstance(self._protocol, TurnStreamMixin):
            # TCP and TLS: without this, a slow path fills megabytes in the kernel before it is noticed here.
            sock = self._protocol.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._UNSENT_BYTES)

    def send(self, datagram: memoryview | bytes) -> None:
        """Raises: BlockingIOError: too much waits already. ConnectionError: the relay is closed."""
        protocol = self._protocol
        if protocol.transport.is_closing():
            raise ConnectionError("the relay is closed")
        if protocol.transport.get_write_buffer_size() > self._WAITING_BYTES:
            raise BlockingIOError(errno.EAGAIN, "the relay is slow")
        channel, now_s = protocol.peer_to_channel.get(self._address), time.monotonic()
        bound = channel is not None and now_s <= protocol.channel_refresh_at[channel]
        if not bound and now_s > self._bind_at_s + self._BIND_RETRY_S:
            self._bind_at_s = now_s
            task = asyncio.create_task(protocol.send_data(bytes(datagram), self._address), name="bind-channel")
            self._tasks.add(task)
            task.add_done_callback(self._bound)
        elif channel is None:
            raise BlockingIOError(errno.EAGAIN, "the relay has no channel yet")
        else:
            protocol._send(struct.pack("!HH", channel, len(datagram)) + datagram)

    def _bound(self, task: asyncio.Task[None]) -> None:
        """End a relay whose server refuses the channel, as with expired credentials: pictures would be lost."""
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), TransactionFailed):
            self._protocol.transport.close()


_CONNECTION_PARTS = (
    *("_nominated", "_queue", "_protocols", "_closing", "_check_list_done", "_remote_candidates"),
    *("_local_candidates", "_local_candidates_start", "_local_candidates_end"),
    *("_pair_remote_candidate", "sort_check_list", "data_received"),
)


def ice_differences(connection: Connection) -> Iterator[str]:
    """Name the private parts of aioice that this module and the project's sender need and do not find.

    Needs a running event loop.
    """
    yield from (f"Connection.{name}" for name in _CONNECTION_PARTS if not hasattr(connection, name))
    if not hasattr(_local("host", ("192.0.2.1", 9)), "_network_host"):
        yield "Candidate._network_host"
    if not hasattr(StunProtocol(connection), "receiver"):
        yield "StunProtocol.receiver"
    if not isinstance(connection._nominated, dict):
        yield "Connection._nominated"
    if not hasattr(CandidatePair, "remote_addr"):
        yield "CandidatePair.remote_addr"
    for function, name in (
        (CandidatePair.__init__, "protocol"),
        (TurnTransport.__init__, "_TurnTransport__inner_protocol"),
        (TurnTransport.__init__, "_TurnTransport__send_tasks"),
        (TurnClientMixin.__init__, "peer_to_channel"),
        (TurnClientMixin.__init__, "channel_refresh_at"),
        (TurnClientMixin.send_data, "time"),
    ):
        if name not in function.__code__.co_names:
            yield f"{name} in {function.__qualname__}"
