"""One encode's distribution: every access unit to every sender, keyframes asked for once for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edge.core.keyframes import KeyframeRequests

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit

_NS_PER_90K_NUM, _NS_PER_90K_DEN = 9, 100_000


class Sender(Protocol):
    """One viewer's way out, pushed access units. Event loop only, never blocks, never raises."""

    @property
    def dropped(self) -> int:
        """Access units that this viewer was not sent, since it was too slow."""

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        """Send, queue or drop. False: this viewer can go on only from the next keyframe, ask for one."""


class Hub:
    """The senders of one quality.

    `request_keyframe` is called at most once per half second, however many ask; `now_s` is the monotonic clock.
    Timestamps come from the capture clock, so that they do not care how the access units were scheduled on the way;
    one that does not advance (a fault of the encoder) is dropped and counted: a receiver would see a jump back.
    """

    def __init__(
        self, request_keyframe: Callable[[], None], now_s: Callable[[], float], counters: Counter[str]
    ) -> None:
        self._request_keyframe = request_keyframe
        self._now_s = now_s
        self._counters = counters
        self._requests = KeyframeRequests()
        self._senders: list[Sender] = []
        self._epoch_ns: int | None = None
        self._last_ns = 0

    def join(self, sender: Sender) -> None:
        """From now on this sender is pushed to; a keyframe is asked for, for it."""
        self._senders.append(sender)
        self.wish_keyframe()

    def leave(self, sender: Sender) -> None:
        """Idempotent."""
        if sender in self._senders:
            self._senders.remove(sender)
            self._counters["units_dropped"] += sender.dropped

    def wish_keyframe(self) -> None:
        """A viewer needs a keyframe: it joined, lost packets (PLI, FIR) or dropped."""
        self._counters["keyframe_wishes"] += 1
        if self._requests.wish(self._now_s()):
            self._ask()

    def push(self, unit: AccessUnit) -> None:
        """Distribute; called by the camera part for every access unit."""
        if self._epoch_ns is None:
            self._epoch_ns = unit.captured_ns
        elif unit.captured_ns <= self._last_ns:
            self._counters["units_out_of_order"] += 1
            return
        self._last_ns = unit.captured_ns
        pts_90k = (unit.captured_ns - self._epoch_ns) * _NS_PER_90K_NUM // _NS_PER_90K_DEN
        if unit.keyframe:
            self._requests.came()
        on_way = [sender.push(unit, pts_90k) for sender in self._senders]
        if not all(on_way):
            self.wish_keyframe()
        elif self._requests.due(self._now_s()):
            self._ask()

    def _ask(self) -> None:
        self._counters["keyframe_requests"] += 1
        self._request_keyframe()
