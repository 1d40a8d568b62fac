"""When the camera process is started, probed, opened, closed and killed: rules over time, without I/O.

A source that stops delivering is closed and opened again in its process. If it does not close, or fails a few times in
a row, the process is killed and another one is started. The wait between tries grows. While nobody wants the camera,
the process only probes for it, so that a missing camera is known before the first viewer comes.
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
"""Until a new process sends Ready. Most of it is a cold import from a slow SD card."""
PROBE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0
REOPEN_TIMEOUT_S = 1.0
"""How long a stalled source may take to close."""
TRIES = 3
"""How often in a row a source may fail in one process before a new process is started."""
STUCK_LIMIT = 4
"""Each process that cannot be killed keeps its memory. With this many, no new one is started until one ends."""
HEALTHY_S = 10.0
"""A process that worked for this long resets the back-off."""


class ProcessPhase(StrEnum):
    """DOWN: there is no process. IDLE: the process runs and the source is closed."""

    DOWN = "down"
    STARTING = "starting"
    IDLE = "idle"
    PROBING = "probing"
    OPENING = "opening"
    RUNNING = "running"
    CLOSING = "closing"


class Remedy(StrEnum):
    """What is tried when the camera does not deliver."""

    REOPEN = "reopen"
    RESTART = "restart"


class Effect(StrEnum):
    """What the owner of the process does next."""

    SPAWN = "spawn"
    PROBE = "probe"
    START = "start"
    STOP = "stop"
    KILL = "kill"


@dataclass(slots=True)
class Lifecycle:
    """Report each event to it, and carry out what `step` returns. `draw`: uniform in [0, 1), for jitter."""

    open_timeout_s: float
    stall_s: float
    draw: Callable[[], float]
    phase: ProcessPhase = ProcessPhase.DOWN
    wanted: bool = False
    opening: Opening | None = None
    error: CameraUnavailable | None = None
    """Why there is no picture, or would be none. None: the camera runs, or the last probe found it."""
    reopens: int = 0
    """How often the source was opened again in the same process after it failed or stalled."""
    restarts: int = 0
    """How often a process replaced an earlier one."""
    stalls: int = 0
    failures: int = 0
    """How often the source could not be opened, stopped delivering, or failed, in a process that went on."""
    remedy: Remedy | None = None
    """The last remedy that was tried."""
    why: str = ""
    """Why it was tried."""
    outdated: bool = False
    """The source was opened with other settings than those in force; it is opened again."""
    _had_pictures: bool = False
    """The camera has run since it was last wanted, so viewers see a frozen picture."""
    _reopen_due: bool = False
    _tries: int = 0
    _spawned: bool = False
    _retry_at_s: float = 0.0
    _backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.25, cap_s=5.0))
    _next_probe_at_s: float = 0.0
    _probe_backoff: Backoff = field(default_factory=lambda: Backoff(first_s=2.0, cap_s=60.0, least_s=1.0))
    _stuck: int = 0
    _spawn_not_before_s: float = 0.0
    _stuck_backoff: Backoff = field(default_factory=lambda: Backoff(first_s=10.0, cap_s=60.0, least_s=5.0))
    _deadline_at_s: float = 0.0
    _overdue: str = ""
    _last_unit_at_s: float = 0.0
    _healthy_since_s: float | None = None

    @property
    def state(self) -> CameraState:
        if self.phase is ProcessPhase.RUNNING:
            return CameraState.RUNNING
        if self.error:
            return CameraState.FAILED
        return CameraState.OPENING if self.wanted else CameraState.CLOSED

    @property
    def due_s(self) -> float:
        """When to call `step` if nothing happens before; may be infinite."""
        match self.phase:
            case ProcessPhase.DOWN if self._stuck >= STUCK_LIMIT:
                return float("inf")
            case ProcessPhase.DOWN:
                return max(self._retry_at_s, self._spawn_not_before_s)
            case ProcessPhase.IDLE:
                return self._retry_at_s if self.wanted else self._next_probe_at_s
            case ProcessPhase.RUNNING:
                return self._last_unit_at_s + self.stall_s
            case _:
                return self._deadline_at_s

    def step(self, now_s: float) -> Effect | None:
        """What to do now. Call it again until it returns None. After KILL the process counts as gone."""
        if self.phase is ProcessPhase.RUNNING:
            return self._watch(now_s)
        if self.phase is ProcessPhase.IDLE and self.wanted and self._tries >= TRIES:
            return self._kill(self.why, now_s)
        if now_s < self.due_s:
            return None
        match self.phase:
            case ProcessPhase.DOWN:
                return self._spawn(now_s)
            case ProcessPhase.IDLE:
                return self._open(now_s) if self.wanted else self._probe(now_s)
            case _:
                return self._kill(self._overdue, now_s)

    def _spawn(self, now_s: float) -> Effect:
        if self._spawned:
            self.restarts += 1
            self.remedy = Remedy.RESTART
        self._spawned = True
        self._reopen_due = False
        self._tries = 0
        return self._enter(ProcessPhase.STARTING, Effect.SPAWN, now_s, SPAWN_TIMEOUT_S, "did not start")

    def _probe(self, now_s: float) -> Effect:
        return self._enter(ProcessPhase.PROBING, Effect.PROBE, now_s, PROBE_TIMEOUT_S, "did not answer")

    def _open(self, now_s: float) -> Effect:
        self.outdated = False
        if self._reopen_due:
            self._reopen_due = False
            self.reopens += 1
            self.remedy = Remedy.REOPEN
        return self._enter(ProcessPhase.OPENING, Effect.START, now_s, self.open_timeout_s, "did not open")

    def _watch(self, now_s: float) -> Effect | None:
        if not self.wanted or self.outdated:
            self.opening = None
            return self._enter(ProcessPhase.CLOSING, Effect.STOP, now_s, STOP_TIMEOUT_S, "did not close")
        if now_s < self._last_unit_at_s + self.stall_s:
            return None
        self.stalls += 1
        self._count_failure(CameraUnavailable(f"the camera delivered no picture for {self.stall_s:g} s"), now_s)
        return self._enter(ProcessPhase.CLOSING, Effect.STOP, now_s, REOPEN_TIMEOUT_S, "has stalled and did not close")

    def want(self, now_s: float, *, wanted: bool) -> None:
        """Say whether the camera should be open; idempotent."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        if wanted:
            self.retry_now(now_s)
        else:
            self._had_pictures = False
            self._probe_backoff.reset()
            # The fault may be over by now: probe at once.
            self._next_probe_at_s = now_s if self.error else now_s + self._probe_backoff.next_s(self.draw())

    def reconfigure(self, now_s: float) -> None:
        """The settings changed: an open source is closed and opened again, without a wait."""
        self.outdated = True
        self.retry_now(now_s)

    def retry_now(self, now_s: float) -> None:
        """Skip the wait before the next try. The wait after a process that cannot be killed stays."""
        self._retry_at_s = min(self._retry_at_s, now_s)

    def ready(self, now_s: float, missing: CameraUnavailable | None = None) -> None:
        """The process is up. `missing`: why its first probe did not find the camera."""
        if self.phase is ProcessPhase.STARTING:
            self.phase = ProcessPhase.IDLE
            self._retry_at_s = now_s
            self._healthy_since_s = now_s
            self._take_probe(missing, now_s)

    def probed(self, now_s: float, missing: CameraUnavailable | None = None) -> None:
        """The process has probed for the camera. `missing`: why it did not find it."""
        if self.phase is ProcessPhase.PROBING:
            self.phase = ProcessPhase.IDLE
            self._take_probe(missing, now_s)

    def opened(self, opening: Opening, now_s: float) -> None:
        if self.phase is ProcessPhase.OPENING:
            self.phase = ProcessPhase.RUNNING
            self.opening = opening
            self.error = None
            self._had_pictures = True
            self._last_unit_at_s = now_s
            if self._healthy_since_s is None:
                self._healthy_since_s = now_s

    def unit(self, now_s: float) -> None:
        """An access unit of HD arrived."""
        self._last_unit_at_s = now_s

    def failed(self, error: CameraUnavailable, now_s: float) -> None:
        """The source could not be opened, or failed while it ran."""
        if self.phase in {ProcessPhase.OPENING, ProcessPhase.RUNNING}:
            self._count_failure(error, now_s)
            self.phase = ProcessPhase.IDLE

    def closed(self, now_s: float) -> None:
        if self.phase is ProcessPhase.CLOSING:
            self.phase = ProcessPhase.IDLE
            if not self._reopen_due:
                self._retry_at_s = now_s

    def lost(self, message: str, now_s: float) -> None:
        """The process has ended."""
        if self.phase is not ProcessPhase.DOWN:
            self.phase = ProcessPhase.DOWN
            self._fail(CameraUnavailable(message), now_s)

    def stuck(self, pid: int | None, now_s: float) -> None:
        """SIGKILL did not end the process. Others may hang as well, so the wait before the next one grows."""
        detail = f"camera process {pid} is stuck in a kernel call and cannot be killed: see dmesg; a reboot clears it"
        self._set_error(CameraUnavailable("the camera does not respond", detail=detail))
        self._stuck += 1
        self._spawn_not_before_s = now_s + self._stuck_backoff.next_s(self.draw())

    def released(self, now_s: float) -> None:
        """A process that could not be killed has ended after all."""
        self._stuck -= 1
        self._stuck_backoff.reset()
        self._spawn_not_before_s = now_s

    def end(self) -> None:
        """The daemon stops."""
        self.phase = ProcessPhase.DOWN
        self.wanted = False
        self.opening = None

    def _enter(self, phase: ProcessPhase, effect: Effect, now_s: float, timeout_s: float, overdue: str) -> Effect:
        self.phase = phase
        self._deadline_at_s = now_s + timeout_s
        self._overdue = f"the camera {overdue} within {timeout_s:g} s"
        return effect

    def _take_probe(self, missing: CameraUnavailable | None, now_s: float) -> None:
        if self.wanted:
            return  # opening it shows more
        if (missing is None) != (self.error is None):
            self._probe_backoff.reset()
        if missing is None:
            self.error = None
        elif self.error is None or self.error.detail != missing.detail:
            self.error = missing
        self._next_probe_at_s = now_s + self._probe_backoff.next_s(self.draw())

    def _count_failure(self, error: CameraUnavailable, now_s: float) -> None:
        self.failures += 1
        self._reopen_due = True
        if self._healthy(now_s):
            self._tries = 0
        self._tries += 1
        self._fail(error, now_s)

    def _kill(self, message: str, now_s: float) -> Effect:
        self.lost(message, now_s)
        return Effect.KILL

    def _fail(self, error: CameraUnavailable, now_s: float) -> None:
        self.opening = None
        self.why = error.detail
        self._set_error(error)
        if self._healthy(now_s):
            self._backoff.reset()
        self._healthy_since_s = None
        self._retry_at_s = now_s + self._backoff.next_s(self.draw())

    def _set_error(self, error: CameraUnavailable) -> None:
        code = Code.CAMERA_STALLED if self._had_pictures else None
        self.error = CameraUnavailable(error.message, code=code, detail=error.detail)

    def _healthy(self, now_s: float) -> bool:
        return self._healthy_since_s is not None and now_s - self._healthy_since_s >= HEALTHY_S
