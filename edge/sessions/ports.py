"""What this room needs of other rooms. daemon.py passes the parts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge.contract.messages import IceServer, IceServerLeftOut
    from edge.core.access_unit import Quality, StreamFormat
    from edge.core.camera_controls import ControlValues, Offered
    from edge.core.candidate import Candidate, LocalName
    from edge.core.offer import H264Choice, Offer
    from edge.core.ports import PeerEvents


class SharedCamera(Protocol):
    """The one camera that all sessions share."""

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """What the open camera encodes. Empty while it is closed."""

    @property
    def sd_level_idc(self) -> int:
        """The H.264 level of SD, times ten."""

    def want(self, wanted: bool) -> None:
        """Set whether the camera should be open. Returns at once."""

    async def opened(self) -> StreamFormat:
        """Wait until the camera is open.

        Raises: CameraUnavailable: it did not open; the message says why.
        """

    async def closed(self) -> None:
        """Wait until the camera is released, or until the camera's own deadline has passed."""

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        """The lowest and the highest bitrate that the settings allow, in bits per second."""

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None: ...

    @property
    def offered(self) -> Mapping[str, Offered]:
        """The controls that the open camera offers."""

    @property
    def values(self) -> ControlValues:
        """The controls that were set."""

    async def set_controls(self, values: ControlValues) -> ControlValues:
        """Raises: Rejected: the camera does not accept a value. CameraUnavailable: it is closed, or fails."""

    async def snapshot(self, width: int | None, jpeg_quality: int) -> bytes:
        """Raises: CameraUnavailable: the camera is closed, or gave no picture in time."""


class Peer(Protocol):
    """The connection to one viewer."""

    @property
    def ice_servers_left_out(self) -> Sequence[IceServerLeftOut]:
        """The URLs of the offer's STUN and TURN servers that are not used."""

    @property
    def path(self) -> str | None:
        """The candidate types of the selected pair."""

    @property
    def quality(self) -> Quality: ...

    async def switch(self, quality: Quality) -> None:
        """Raises: CameraUnavailable: this quality is not available now; the viewer keeps the present one."""

    async def accept(self, offer: Offer, choice: H264Choice) -> None:
        """Accept an offer, without waiting for any server.

        Raises: Rejected: the offer cannot be answered. The caller must still call `close`.
        """

    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        """Return the answer to the accepted offer. Without `trickle`, this may wait for STUN and TURN servers."""

    async def add_candidate(self, candidate: Candidate) -> bool:
        """Returns whether it can be used."""

    def add_local_name(self, name: LocalName) -> None:
        """Add a candidate once its name is resolved, if it is."""

    async def stats(self) -> tuple[int, float | None]:
        """The bytes sent so far, and the share of packets lost in the viewer's last report."""

    async def close(self) -> None: ...


class OpenPeer(Protocol):
    """Makes peers."""

    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> Peer:
        """Raises: Rejected: servers are named, and none can be used."""
