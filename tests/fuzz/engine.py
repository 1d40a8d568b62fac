"""An offer through aiortc itself, as the daemon's own peers hand it over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from edge.contract.codes import Code
from edge.core.access_unit import Quality
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected
from edge.streaming.hub import Hub
from edge.streaming.peer import PeerFactory
from edge.streaming.settings import IceSettings, RtpSettings

_ANSWERED_S = 20.0


class _Nothing:
    """The camera, and who is told of a peer."""

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


class Engine:
    """Peers of a hub without a camera, each for one offer."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._bugs: list[str] = []
        self._loop.set_exception_handler(lambda _, context: self._bugs.append(str(context)))
        stream = read_profile_level("42c01f")
        assert stream is not None
        self._stream = stream
        self._loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        counters: Counter[str] = Counter()
        frame_s = dict.fromkeys(Quality, 1 / 30)
        hub = Hub(_Nothing(), time.monotonic, counters, frame_s)
        self._factory = PeerFactory(hub, IceSettings(), RtpSettings(), counters, frame_s=1 / 30)

    def close(self) -> None:
        self._loop.close()

    def take(self, data: bytes) -> None:
        """Raises: whatever aiortc raises and the peer does not turn into a code."""
        self._loop.run_until_complete(asyncio.wait_for(self._take(data.decode(errors="replace")), _ANSWERED_S))
        assert not self._bugs, self._bugs

    async def _take(self, sdp: str) -> None:
        try:
            offer = read_offer(sdp)
            choice = offer.choose(self._stream)
        except Rejected:
            return
        peer = self._factory(_Nothing(), [], Quality.HD)
        try:
            answer = await peer.answer(offer, choice, trickle=True)
            assert answer.count("\r\nm=") == len(offer.sections)
        except Rejected as exc:
            assert exc.code is Code.BAD_OFFER
        finally:
            await peer.close()
