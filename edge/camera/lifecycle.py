"""When the camera process is started, opened, closed and killed: rules over time, without I/O.

What stops delivering is tried with the least first: the source is closed and opened again in its process; where it does
not let go, or does not open a few times in a row, the process is killed and another one started. Between tries there
is a growing wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from edge.camera.port import CameraState
from edge.contract.codes import Code
from edge.core.backoff import Backoff
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.camera.port import Opening

SPAWN_TIMEOUT_S = 15.0
"""Until a new process says Ready: a cold import from a slow SD card is most of it."""
STOP_TIMEOUT_S = 2.0
REOPEN_TIMEOUT_S = 1.0
"""How long a source that has stalled may take to let go."""
TRIES = 3
"""Times in a row that a source may fail in one process; then it is a fresh one's turn."""
HEALTHY_S = 10.0
"""A process that did its work for this long starts the back-off anew."""


class Phase(StrEnum):
    """What the process does. DOWN: there is none. IDLE: up and warm, the source is not open."""

    DOWN = "down"
    STARTING = "starting"
    IDLE = "idle"
    OPENING = "opening"
    RUNNING = "running"
    CLOSING = "closing"


class Remedy(StrEnum):
    """What is tried where the camera does not deliver."""

    REOPEN = "reopen"
    RESTART = "restart"


class Effect(StrEnum):
    """What the owner of the process is to do."""

    SPAWN = "spawn"
    START = "start"
    STOP = "stop"
    KILL = "kill"


@dataclass(slots=True)
class Lifecycle:
    """Feed it what happened and do what `step` says. `draw`: uniform in [0, 1), for the back-off."""

    open_timeout_s: float
    stall_s: float
    draw: Callable[[], float]
    phase: Phase = Phase.DOWN
    wanted: bool = False
    opening: Opening | None = None
    error: CameraUnavailable | None = None
    reopens: int = 0
    """How often the source was opened again in the same process, because it failed or stalled."""
    restarts: int = 0
    stalls: int = 0
    failures: int = 0
    """How often the source said that it failed; the process lived on."""
    remedy: Remedy | None = None
    """The last that was tried."""
    why: str = ""
    """What the last remedy was for."""
    stale: bool = False
    """It is open in another way than it should be."""
    _had_pictures: bool = False
    """Since it is wanted: so those who watch see a picture that stands still."""
    _again_due: bool = False
    _tries: int = 0
    _backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.25, cap_s=5.0))
    _spawned: bool = False
    _retry_s: float = 0.0
    _deadline_s: float = 0.0
    _late: str = ""
    _unit_s: float = 0.0
    _healthy_from_s: float | None = None

    @property
    def state(self) -> CameraState:
        if self.phase is Phase.RUNNING:
            return CameraState.RUNNING
        if not self.wanted:
            return CameraState.CLOSED
        return CameraState.FAILED if self.error else CameraState.OPENING

    @property
    def due_s(self) -> float | None:
        """When `step` has to be asked again if nothing happens; None: not at all."""
        match self.phase:
            case Phase.DOWN:
                return self._retry_s
            case Phase.IDLE:
                return self._retry_s if self.wanted else None
            case Phase.RUNNING:
                return self._unit_s + self.stall_s
            case _:
                return self._deadline_s

    def step(self, now_s: float) -> Effect | None:
        """What to do now; ask again until it is None. After KILL the process counts as gone."""
        match self.phase:
            case Phase.DOWN if now_s >= self._retry_s:
                return self._spawn(now_s)
            case Phase.IDLE if self.wanted and self._tries >= TRIES:
                return self._kill(self.why, now_s)
            case Phase.IDLE if self.wanted and now_s >= self._retry_s:
                return self._open(now_s)
            case Phase.RUNNING:
                return self._watch(now_s)
            case Phase.STARTING | Phase.OPENING | Phase.CLOSING if now_s >= self._deadline_s:
                return self._kill(self._late, now_s)
        return None

    def _spawn(self, now_s: float) -> Effect:
        if self._spawned:
            self.restarts += 1
            self.remedy = Remedy.RESTART
        self._spawned = True
        self._again_due = False
        self._tries = 0
        return self._go(Phase.STARTING, Effect.SPAWN, now_s, SPAWN_TIMEOUT_S, "is not up")

    def _open(self, now_s: float) -> Effect:
        self.stale = False
        if self._again_due:
            self._again_due = False
            self.reopens += 1
            self.remedy = Remedy.REOPEN
        return self._go(Phase.OPENING, Effect.START, now_s, self.open_timeout_s, "did not open")

    def _watch(self, now_s: float) -> Effect | None:
        if not self.wanted or self.stale:
            self.opening = None
            return self._go(Phase.CLOSING, Effect.STOP, now_s, STOP_TIMEOUT_S, "did not close")
        if now_s < self._unit_s + self.stall_s:
            return None
        self.stalls += 1
        self._failed(f"the camera delivered no picture for {self.stall_s:g} s", now_s)
        return self._go(Phase.CLOSING, Effect.STOP, now_s, REOPEN_TIMEOUT_S, "has stalled and did not close")

    def want(self, now_s: float, *, wanted: bool) -> None:
        if wanted and not self.wanted:
            self.hurry(now_s)
        if not wanted:
            self.error = None
            self._had_pictures = False
        self.wanted = wanted

    def renew(self, now_s: float) -> None:
        """It is to be opened in another way: what is open is closed first, and no back-off holds."""
        self.stale = True
        self.hurry(now_s)

    def hurry(self, now_s: float) -> None:
        """Somebody waits: try now what the back-off would have tried later."""
        self._retry_s = min(self._retry_s, now_s)

    def ready(self, now_s: float) -> None:
        if self.phase is Phase.STARTING:
            self.phase = Phase.IDLE
            self._retry_s = now_s
            self._healthy_from_s = now_s

    def opened(self, opening: Opening, now_s: float) -> None:
        if self.phase is Phase.OPENING:
            self.phase = Phase.RUNNING
            self.opening = opening
            self.error = None
            self._had_pictures = True
            self._unit_s = now_s
            if self._healthy_from_s is None:
                self._healthy_from_s = now_s

    def unit(self, now_s: float) -> bool:
        """An access unit came. False: it is left over from before the camera was told to stop."""
        self._unit_s = now_s
        return self.phase is Phase.RUNNING

    def failed(self, message: str, now_s: float) -> None:
        """The source could not be opened, or broke."""
        if self.phase in {Phase.OPENING, Phase.RUNNING}:
            self._failed(message, now_s)
            self.phase = Phase.IDLE

    def closed(self, now_s: float) -> None:
        if self.phase is Phase.CLOSING:
            self.phase = Phase.IDLE
            if not self._again_due:
                self._retry_s = now_s

    def lost(self, message: str, now_s: float) -> None:
        """The process is gone."""
        if self.phase is not Phase.DOWN:
            self.phase = Phase.DOWN
            self._again(message, now_s)

    def _go(self, phase: Phase, effect: Effect, now_s: float, timeout_s: float, late: str) -> Effect:
        self.phase = phase
        self._deadline_s = now_s + timeout_s
        self._late = f"the camera {late} within {timeout_s:g} s"
        return effect

    def _failed(self, message: str, now_s: float) -> None:
        self.failures += 1
        self._again_due = True
        if self._healthy(now_s):
            self._tries = 0
        self._tries += 1
        self._again(message, now_s)

    def _kill(self, message: str, now_s: float) -> Effect:
        self.lost(message, now_s)
        return Effect.KILL

    def _again(self, message: str, now_s: float) -> None:
        self.opening = None
        self.why = message
        if self.wanted:
            self.error = CameraUnavailable(message, code=Code.CAMERA_STALLED if self._had_pictures else None)
        if self._healthy(now_s):
            self._backoff.reset()
        self._healthy_from_s = None
        self._retry_s = now_s + self._backoff.next_s(self.draw())

    def _healthy(self, now_s: float) -> bool:
        return self._healthy_from_s is not None and now_s - self._healthy_from_s >= HEALTHY_S
