"""Run an offer through aiortc, by the daemon's own peers."""

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

_ANSWER_TIMEOUT_S = 20.0


class _NullPorts:
    """A camera and a listener for peer events that both do nothing."""

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...

    def connected(self) -> None: ...

    def lost(self) -> None: ...

    def relay_lost(self) -> None: ...

    def failed(self) -> None: ...

    def local_candidate(self, line: str | None) -> None: ...


class Engine:
    """A hub without a camera. Each offer gets a new peer."""

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
        hub = Hub(_NullPorts(), time.monotonic, counters, frame_s)
        self._factory = PeerFactory(hub, IceSettings(), RtpSettings(), counters, frame_s=1 / 30)

    def close(self) -> None:
        self._loop.close()

    def answer(self, data: bytes) -> None:
        """Answer an offer. Raises: any error of aiortc that the peer does not turn into an error code."""
        self._loop.run_until_complete(asyncio.wait_for(self._answer(data.decode(errors="replace")), _ANSWER_TIMEOUT_S))
        assert not self._bugs, self._bugs

    async def _answer(self, sdp: str) -> None:
        try:
            offer = read_offer(sdp)
            choice = offer.choose(self._stream)
        except Rejected:
            return
        peer = self._factory(_NullPorts(), [], Quality.HD)
        try:
            await peer.accept(offer, choice)
            answer = await peer.answer(offer, choice, trickle=True)
            assert answer.count("\r\nm=") == len(offer.sections)
        except Rejected as exc:
            assert exc.code is Code.BAD_OFFER
        finally:
            await peer.close()
