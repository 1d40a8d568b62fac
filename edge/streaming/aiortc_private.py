"""Everything that the project needs of the private parts of aiortc and aioice, and nothing else.

Pinned in pyproject.toml to the versions that this was read against: aiortc 1.16, aioice 0.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aioice.candidate import Candidate as IceCandidate
from aioice.ice import StunProtocol, relayed_candidate, server_reflexive_candidate

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioice.ice import Connection
    from aiortc import RTCPeerConnection, RTCRtpSender

    from edge.core.candidate import Candidate
    from edge.streaming.ice_servers import StunServer, TurnServer


def on_keyframe_request(sender: RTCRtpSender, wish: Callable[[], None]) -> None:
    """Hand PLI and FIR on; aiortc's own flag for them is read only where it encodes itself."""
    sender._send_keyframe = wish  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class LocalCandidate:
    """A candidate of ours, as it is signalled."""

    line: str
    type: str


class IceAgent:
    """The ICE connection behind a peer: candidates can be added to both sides while it runs.

    aiortc gathers once, before its answer; here that is host candidates only, and what STUN and TURN
    servers give is added to the running agent.
    """

    def __init__(self, pc: RTCPeerConnection) -> None:
        transport = pc.getTransceivers()[0].receiver.transport.transport
        self._connection: Connection = transport._connection

    async def add_remote(self, candidate: Candidate) -> None:
        """Add a candidate of the browser's; never the end mark: the session's own deadline ends a hopeless search."""
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

    async def reflexive(self, server: StunServer) -> list[LocalCandidate]:
        """Ask a STUN server from the first IPv4 host socket.

        Raises: OSError, aioice.stun.TransactionError: no answer. Bound it with a deadline, it may try for long.
        """
        for protocol in list(self._connection._protocols):
            host = protocol.local_candidate
            if host.type == "host" and ":" not in host.host:
                found, _ = await server_reflexive_candidate(protocol, (server.host, server.port))
                return self._added(found)
        return []

    async def relayed(self, server: TurnServer) -> list[LocalCandidate]:
        """Allocate on a TURN server, and pair the relay with every candidate of the browser so far.

        Raises: OSError, aioice.stun.TransactionError: no allocation. Bound it with a deadline.
        """
        connection = self._connection
        found, protocol = await relayed_candidate(
            component=1,
            hide_related_address=False,
            protocol_factory=lambda: StunProtocol(connection),
            turn_server=(server.host, server.port),
            turn_username=server.username,
            turn_password=server.password.get_secret_value(),
            turn_ssl=server.tls,
            turn_transport=server.transport,
        )
        if connection._closing or connection._check_list_done:
            await protocol.close()
            return []
        connection._protocols.append(protocol)
        for remote in connection._remote_candidates:
            connection._pair_remote_candidate(remote)
        connection.sort_check_list()
        return self._added(found)

    @property
    def settled(self) -> bool:
        """Whether a pair was chosen, or the agent closed: more candidates are of no use."""
        return bool(self._connection._closing or self._connection._check_list_done)

    @property
    def path(self) -> str | None:
        """The chosen pair as `local/remote` candidate types; None while there is none."""
        pair = self._connection._nominated.get(1)
        return f"{pair.local_candidate.type}/{pair.remote_candidate.type}" if pair else None

    def _added(self, found: IceCandidate) -> list[LocalCandidate]:
        self._connection._local_candidates.append(found)
        return [LocalCandidate(f"candidate:{found.to_sdp()}", found.type)]
