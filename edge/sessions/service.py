"""Sessions: who is let in, what they get, and when it ends. The same for an MQTT offer and a local one."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.messages import AnswerBody, Limits
from edge.core.access_unit import Quality
from edge.core.admission import admit
from edge.core.candidate import read_candidate
from edge.core.demand import CameraDemand
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.core.principal import Scope
from edge.core.session import Deadlines
from edge.errors import CameraUnavailable, Rejected
from edge.sessions.session import Session

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping

    from edge.contract.messages import BitrateRange, CandidateBody, OfferBody, QualityBody, SessionInfo, StreamBody
    from edge.core.offer import Offer
    from edge.core.principal import Principal
    from edge.sessions.ports import Camera, Door, OpenPeer
    from edge.sessions.settings import SessionSettings
    from edge.sessions.wish import StreamWish

log = logging.getLogger(__name__)

session_of_log: ContextVar[str | None] = ContextVar("session_of_log", default=None)
"""The session that the present task works for; the log writes it beside each line."""

_EARLY_CANDIDATE_S = 5.0
_EARLY_LIMIT = 32
_STUCK_S = 10.0


class Sessions:
    """The session use case. Event loop only.

    `on_change`: something of the status changed. `notice`: an event for whoever listens (type, session, body).
    """

    def __init__(
        self,
        settings: SessionSettings,
        wish: StreamWish,
        camera: Camera,
        open_peer: OpenPeer,
        *,
        idle_stop_s: float,
        now_s: Callable[[], float],
        on_change: Callable[[], None],
        notice: Callable[[str, str | None, dict[str, Any]], None],
        counters: Counter[str],
    ) -> None:
        self._settings = settings
        self._deadlines = Deadlines(settings.answer_timeout_s, settings.connect_timeout_s)
        self._wish = wish
        self._camera = camera
        self._open_peer = open_peer
        self._now_s = now_s
        self._on_change = on_change
        self._notice = notice
        self._counters = counters
        self._demand = CameraDemand(idle_stop_s)
        self._demand.set_running(wish.running)
        for quality, bitrate_bps in wish.bitrates.items():
            camera.set_bitrate(quality, bitrate_bps)
        self._camera_error: CameraUnavailable | None = None
        self._sessions: dict[str, Session] = {}
        self._early: dict[str, list[asyncio.Future[None]]] = {}
        self._demand_changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # The use case.

    async def open(self, body: OfferBody, owner: Principal, door: Door) -> AnswerBody:
        """Answer an offer.

        Raises: Rejected: with the contract's code; no session is left. CameraUnavailable: with the cause in words.
        """
        if self._group is None:
            raise Rejected(Code.STOPPED, "the device is shutting down")
        session_id = body.session or f"s-{secrets.token_urlsafe(12)}"
        if session_id in self._sessions:
            raise Rejected(Code.BAD_MESSAGE, "body.session: a session with this id is open")
        if body.audio != "off":
            raise Rejected(Code.AUDIO_UNAVAILABLE, "this camera has no audio")
        admit(running=self._wish.running, sessions=len(self._sessions), max_viewers=self._settings.max_viewers)
        offer = read_offer(body.sdp)
        session = Session(
            session_id, owner, door, self._deadlines, since=datetime.now(UTC), now_s=self._now_s, on_live=self._live
        )
        session.mid = offer.mid
        quality = _quality(body.quality)
        session.peer = self._open_peer(session, body.ice_servers, quality)
        self._register(session, self._group)
        token = session_of_log.set(session_id)
        try:
            async with asyncio.timeout(self._settings.answer_timeout_s):
                sdp = await self._answer(session, offer, trickle=body.trickle)
        except (Rejected, CameraUnavailable):
            # Stopped meanwhile: that is why, whatever the closed peer said.
            self._still_open(session)
            session.finish(EndReason.REFUSED)
            raise
        except TimeoutError:
            session.finish(EndReason.ANSWER_TIMEOUT)
            raise Rejected(Code.TIMEOUT, "the answer took too long", retry_after_s=5) from None
        except asyncio.CancelledError:
            session.finish(EndReason.SHUTDOWN)
            raise
        except Exception:
            session.finish(EndReason.INTERNAL)
            raise
        finally:
            session_of_log.reset(token)
        self._still_open(session)
        self._notice("session.opened", session_id, {"viewer": owner.subject})
        return AnswerBody(session=session_id, sdp=sdp, limits=Limits(viewers=self._settings.max_viewers))

    async def candidate(self, body: CandidateBody, caller: Principal) -> None:
        """A candidate of a viewer's; one that came before its offer waits for it, bounded.

        Raises: Rejected: `unknown_session`, `forbidden`, `bad_message`, `rate_limited`.
        """
        candidate = None if not body.candidate else read_candidate(body.candidate)
        if body.session not in self._sessions:
            await self._wait_for_offer(body.session)
        session = self._owned(body.session, caller)
        if body.candidate is not None:
            await session.add_candidate(candidate)

    async def quality(self, body: QualityBody, caller: Principal) -> None:
        """Give a session the other quality, without a new connection; returns when the viewer is sent it.

        Raises: Rejected: `unknown_session`, `forbidden`, `unsupported`; `rate_limited`: a later change replaced this
        one. CameraUnavailable: it cannot be had now.
        """
        session = self._owned(body.session, caller)
        quality = _quality(body.quality)
        self._check_quality(quality)
        if session.peer is not None:
            await session.peer.switch(quality)
            self._on_change()

    async def close(self, session_id: str, caller: Principal) -> None:
        """End a session: its owner, or who may manage.

        Raises: Rejected: `unknown_session`, `forbidden`.
        """
        session = self._sessions.get(session_id)
        if session is None or Scope.MANAGE not in caller.scopes:
            session = self._owned(session_id, caller)
        owned = caller.owns(session.owner)
        session.finish(EndReason.VIEWER_CLOSED if owned else EndReason.CLOSED_BY_BACKEND)

    def listing(self) -> list[SessionInfo]:
        """Who watches."""
        return [session.info() for session in self._sessions.values()]

    @property
    def count(self) -> int:
        return len(self._sessions)

    @property
    def limit(self) -> int:
        """How many may be."""
        return self._settings.max_viewers

    async def start(self, body: StreamBody, caller: Principal) -> None:
        """Let viewers in from now on, over restarts; idempotent.

        Raises: Rejected: `bad_message`, a bitrate that the settings do not allow.
        """
        bitrates = {quality: most_bps for quality in Quality if (most_bps := self._most_bps(quality, body)) is not None}
        self._change_wish(running=True, reason=body.reason, caller=caller, bitrates=bitrates)
        await self._wish.keep()

    async def stop(self, reason: str | None, caller: Principal) -> None:
        """End every session and release the camera, until `start`, over restarts; idempotent.

        Returns when the sessions have ended and the camera is released, or their deadlines have passed. It is on disk
        before the first session ends: a power cut meanwhile does not bring the camera back on. Stops at the same time
        do not queue. A start meanwhile wins.
        """
        self._change_wish(running=False, reason=reason, caller=caller, bitrates={})
        await self._wish.keep()
        if not self._wish.running:
            await self._end_all(EndReason.STOPPED)
            await self._camera.closed()

    @contextmanager
    def camera_in_use(self) -> Iterator[None]:
        """Around a use of the camera for a moment, which opens it.

        Raises: Rejected: `stopped`.
        """
        admit(running=self._wish.running and self._group is not None, sessions=0, max_viewers=1)
        self._demand.add_uses(+1)
        self._update_demand()
        try:
            yield
        finally:
            self._demand.add_uses(-1)
            self._update_demand()

    def camera_changed(self, error: CameraUnavailable | None, *, running: bool) -> None:
        """What the camera does now: those who watch are told when the picture stands still, and when it moves again."""
        if error is not None or running:
            self._camera_error = error
            for session in self._sessions.values():
                session.tell_camera(error)

    def retune(self, settings: SessionSettings, idle_stop_s: float) -> None:
        """Other limits from now on; who watches stays, also where fewer may."""
        self._settings = settings
        self._demand.idle_stop_s = idle_stop_s
        self._demand_changed.set()
        self._on_change()

    def tell_camera_again(self) -> None:
        """After the link was away."""
        for session in self._sessions.values():
            session.tell_camera_again(self._camera_error)

    # The part.

    async def run(self, ready: asyncio.Event) -> None:
        """Look after sessions and the camera's demand until cancelled; then say goodbye to every viewer."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                ready.set()
                try:
                    await self._follow_demand()
                finally:
                    # Inside the group: it would cancel the sessions' tasks before they said goodbye.
                    self._group = None
                    await self._end_all(EndReason.SHUTDOWN)
        finally:
            self._camera.want(False)

    def well(self, now_s: float) -> bool:
        """Whether no session is stuck past its deadline."""
        deadlines = (session.machine.deadline_s() for session in self._sessions.values())
        return all(deadline_s is None or now_s < deadline_s + _STUCK_S for deadline_s in deadlines)

    async def _answer(self, session: Session, offer: Offer, *, trickle: bool) -> str:
        stream = await self._camera.opened()
        peer = session.peer
        assert peer is not None
        self._check_quality(peer.quality)
        profile = read_profile_level(stream.profile_level_id)
        if profile is None:
            raise CameraUnavailable(
                f"the camera's stream has a profile that cannot be offered ({stream.profile_level_id})"
            )
        sdp = await peer.answer(offer, offer.choose(profile), trickle=trickle)
        await session.take_held(peer)
        session.answered()
        return sdp

    def _check_quality(self, quality: Quality) -> None:
        offered = self._camera.qualities
        if not offered:
            raise CameraUnavailable("the camera is not open now")
        if quality not in offered:
            raise Rejected(Code.UNSUPPORTED, f"this camera does not offer {quality}")

    def _most_bps(self, quality: Quality, body: StreamBody) -> int | None:
        """None: as it was."""
        wanted: BitrateRange | None = getattr(body, quality)
        if wanted is None:
            return None
        lowest, highest = self._camera.bitrate_range(quality)
        for name in ("min_bps", "max_bps"):
            value = getattr(wanted, name)
            if value is not None and not lowest <= value <= highest:
                raise Rejected(Code.BAD_MESSAGE, f"body.{quality}.{name}: {lowest} to {highest}")
        return wanted.max_bps

    def _still_open(self, session: Session) -> None:
        if (end := session.machine.end) is not None:
            raise Rejected(end.code or Code.STOPPED, f"the session ended before its answer: {end}")

    def _register(self, session: Session, group: asyncio.TaskGroup) -> None:
        self._sessions[session.id] = session
        self._demand.set_sessions(len(self._sessions), self._now_s())
        self._update_demand()
        for waiter in self._early.pop(session.id, []):
            if not waiter.done():
                waiter.set_result(None)
        self._tasks[session.id] = group.create_task(self._see_through(session), name=f"session:{session.id}")
        self._counters["sessions_opened"] += 1
        self._on_change()

    async def _see_through(self, session: Session) -> None:
        session_of_log.set(session.id)
        try:
            await session.see_through()
        except Exception:
            # One session's bug ends that session; a test run fails on the counter.
            log.exception("a bug ended this session")
            self._counters["session_bugs"] += 1
            session.machine.end = EndReason.INTERNAL
        finally:
            self._forget(session)

    def _live(self, session: Session) -> None:
        log.info("live, by %s", session.peer.path if session.peer else None)
        self._notice("session.live", session.id, {"viewer": session.owner.subject})
        session.tell_camera(self._camera_error)
        self._on_change()

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        self._tasks.pop(session.id, None)
        self._demand.set_sessions(len(self._sessions), self._now_s())
        self._demand_changed.set()
        reason = session.machine.end or EndReason.INTERNAL
        self._counters[f"sessions_ended_{reason}"] += 1
        log.info("ended: %s", reason)
        if reason is not EndReason.REFUSED:
            # A refused offer has had its error reply.
            session.tell_closed(reason)
            body = {"viewer": session.owner.subject, "reason": reason.value, "code": reason.code}
            self._notice("session.closed", session.id, body)
        self._on_change()

    def _owned(self, session_id: str, caller: Principal) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise Rejected(Code.UNKNOWN_SESSION, "there is no such session")
        if not caller.owns(session.owner):
            raise Rejected(Code.FORBIDDEN, "this session belongs to another")
        return session

    async def _wait_for_offer(self, session_id: str) -> None:
        if sum(map(len, self._early.values())) >= _EARLY_LIMIT:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._early.setdefault(session_id, [])
        waiters.append(waiter)
        try:
            async with asyncio.timeout(_EARLY_CANDIDATE_S):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._early.pop(session_id, None)

    def _change_wish(
        self, *, running: bool, reason: str | None, caller: Principal, bitrates: Mapping[Quality, int]
    ) -> None:
        changed = self._wish.change(running=running, reason=reason, bitrates=bitrates)
        self._demand.set_running(running)
        for quality, bitrate_bps in bitrates.items():
            self._camera.set_bitrate(quality, bitrate_bps)
        self._update_demand()
        if changed:
            log.info("stream %s by %s: %r", "started" if running else "stopped", caller.client, reason)
            self._notice("stream.started" if running else "stream.stopped", None, {"reason": reason})
        self._on_change()

    async def _end_all(self, reason: EndReason) -> None:
        """End the sessions of now, and wait for them; one that is opened meanwhile is not waited for."""
        for session in list(self._sessions.values()):
            session.finish(reason)
        if ending := set(self._tasks.values()):
            _, late = await asyncio.wait(ending, timeout=self._deadlines.closing_s + 1)
            if late:
                log.error("sessions did not end in time count=%d", len(late))

    def _update_demand(self) -> None:
        self._camera.want(self._demand.wanted(self._now_s()))
        self._demand_changed.set()

    async def _follow_demand(self) -> None:
        while True:
            self._demand_changed.clear()
            now_s = self._now_s()
            self._camera.want(self._demand.wanted(now_s))
            due_s = self._demand.next_change_s(now_s)
            try:
                async with asyncio.timeout(None if due_s is None else due_s - now_s):
                    await self._demand_changed.wait()
            except TimeoutError:
                log.info("camera not watched any more: closing")


def _quality(asked: str) -> Quality:
    # Nothing is known yet of how much a viewer's path carries: `auto` is the better one.
    return Quality.SD if asked == "sd" else Quality.HD
