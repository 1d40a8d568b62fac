"""The session service: admits offers, answers them and ends sessions. The same for MQTT and for the local API."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.messages import AnswerBody, Limits
from edge.core.access_unit import Quality
from edge.core.admission import admit, admit_use
from edge.core.candidate import read_candidate, read_local_name
from edge.core.demand import CameraDemand
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.core.principal import Scope
from edge.core.session import Deadlines
from edge.errors import CameraUnavailable, Rejected
from edge.sessions.offer_waiters import OfferWaiters
from edge.sessions.session import Session

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping

    from edge.contract.messages import BitrateRange, CandidateBody, OfferBody, QualityBody, SessionInfo, StreamBody
    from edge.core.offer import Offer
    from edge.core.ports import SessionListener
    from edge.core.principal import Principal
    from edge.sessions.desired_stream import DesiredStream
    from edge.sessions.ports import OpenPeer, SharedCamera
    from edge.sessions.settings import SessionSettings

log = logging.getLogger(__name__)

log_session: ContextVar[str | None] = ContextVar("log_session", default=None)
"""The id of the session that the current task works for. Every log line of the task carries it."""

_STUCK_S = 10.0


class SessionService:
    """Opens, looks after and ends sessions, and starts and stops the stream. Event loop only.

    `on_change`: called when a fact of the status changed. `publish_event`: publishes an event (type, session, body).
    """

    def __init__(
        self,
        settings: SessionSettings,
        desired: DesiredStream,
        camera: SharedCamera,
        open_peer: OpenPeer,
        *,
        idle_stop_s: float,
        now_s: Callable[[], float],
        on_change: Callable[[], None],
        publish_event: Callable[[str, str | None, dict[str, Any]], None],
        counters: Counter[str],
    ) -> None:
        self._settings = settings
        self._deadlines = Deadlines(settings.answer_timeout_s, settings.connect_timeout_s)
        self._desired = desired
        self._camera = camera
        self._open_peer = open_peer
        self._now_s = now_s
        self._on_change = on_change
        self._publish_event = publish_event
        self._counters = counters
        self._demand = CameraDemand(idle_stop_s)
        self._demand.set_running(desired.running)
        for quality, bitrate_bps in desired.bitrates.items():
            camera.set_bitrate(quality, bitrate_bps)
        self._camera_error: CameraUnavailable | None = None
        self._sessions: dict[str, Session] = {}
        self._early = OfferWaiters()
        self._demand_changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # Commands.

    async def open(self, body: OfferBody, owner: Principal, listener: SessionListener) -> AnswerBody:
        """Answer an offer.

        Raises: Rejected: no session is left. CameraUnavailable: the message says why.
        """
        if self._group is None:
            raise Rejected(Code.STOPPED, "the device is shutting down")
        session_id = body.session or f"s-{secrets.token_urlsafe(12)}"
        if session_id in self._sessions:
            raise Rejected(Code.BAD_MESSAGE, "body.session: a session with this id already exists")
        if body.audio != "off":
            raise Rejected(Code.AUDIO_UNAVAILABLE, "this camera has no audio")
        admit_use(running=self._desired.running)
        offer = read_offer(body.sdp)
        offer.check_codec()
        session = Session(
            session_id, owner, listener, self._deadlines, since=datetime.now(UTC), now_s=self._now_s, on_live=self._live
        )
        self._leaving(session)  # before a connection is made
        session.mid = offer.mid
        quality = _quality(body.quality)
        session.peer = self._open_peer(session, body.ice_servers, quality)
        self._register(session, self._group)
        token = log_session.set(session_id)
        try:
            async with asyncio.timeout(self._settings.answer_timeout_s):
                sdp = await self._answer(session, offer, body)
        except (Rejected, CameraUnavailable):
            # If the session was stopped meanwhile, that is the cause, whatever error the closed peer raised.
            self._still_open(session)
            session.finish(EndReason.REFUSED)
            # A stop closes the camera first, so that the camera's error would hide the cause.
            admit_use(running=self._desired.running)
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
            log_session.reset(token)
        self._still_open(session)
        self._publish_event("session.opened", session_id, {"viewer": owner.subject})
        left_out = list(session.peer.ice_servers_left_out)
        limits = Limits(viewers=self._settings.max_viewers, ice_servers_left_out=left_out)
        return AnswerBody(session=session_id, sdp=sdp, limits=limits)

    async def candidate(self, body: CandidateBody, caller: Principal) -> None:
        """Add a candidate of a viewer. One that arrives before its offer waits for the offer, within bounds.

        Raises: Rejected: `unknown_session`, `forbidden`, `bad_message`, `rate_limited`.
        """
        text = body.candidate
        candidate = (read_candidate(text) or read_local_name(text)) if text else None
        if body.session not in self._sessions:
            await self._early.wait(body.session, caller.proven or caller.client)
        session = self._owned(body.session, caller)
        if body.candidate is not None:
            await session.add_candidate(candidate)

    async def quality(self, body: QualityBody, caller: Principal) -> None:
        """Switch a session to the other quality on the same connection. Returns once the viewer is sent that quality.

        Raises: Rejected: `unknown_session`, `forbidden`, `unsupported`; `rate_limited`: a later change replaced this
        one. CameraUnavailable: the quality is not available now.
        """
        session = self._owned(body.session, caller)
        quality = _quality(body.quality)
        self._check_quality(quality)
        if session.peer is not None:
            await session.peer.switch(quality)
            self._on_change()

    async def close(self, session_id: str, caller: Principal) -> None:
        """End a session. The caller must own it or have the scope `manage`.

        Raises: Rejected: `unknown_session`, `forbidden`.
        """
        session = self._sessions.get(session_id)
        if session is None or Scope.MANAGE not in caller.scopes:
            session = self._owned(session_id, caller)
        owned = caller.owns(session.owner)
        session.finish(EndReason.VIEWER_CLOSED if owned else EndReason.CLOSED_BY_BACKEND)

    def check_owner(self, session_id: str, caller: Principal) -> None:
        """Raises: Rejected: `unknown_session`; `forbidden` or `expired`: the caller does not own the session."""
        self._owned(session_id, caller)

    def listing(self) -> list[SessionInfo]:
        """List the sessions."""
        return [session.info() for session in self._sessions.values()]

    @property
    def count(self) -> int:
        return len(self._sessions)

    @property
    def limit(self) -> int:
        """The viewer limit."""
        return self._settings.max_viewers

    async def start(self, body: StreamBody, caller: Principal) -> None:
        """Admit viewers from now on, also after a restart. Idempotent.

        Raises: Rejected: `bad_message`, the settings do not allow a bitrate. `not_kept`: it took effect.
        """
        bitrates = {quality: most_bps for quality in Quality if (most_bps := self._most_bps(quality, body)) is not None}
        self._change_desired(running=True, reason=body.reason, caller=caller, bitrates=bitrates)
        if not await self._desired.save():
            raise self._desired.not_kept()

    async def stop(self, reason: str | None, caller: Principal) -> None:
        """End every session and release the camera until `start`, also after a restart. Idempotent.

        The stop is on disk before the first session ends, so that a power cut meanwhile does not turn the camera on
        again. Concurrent stops do not queue. A concurrent start wins. Returns when the sessions have ended and the
        camera is released, or when their deadlines have passed.

        Raises: Rejected: `not_kept`: it took effect, but it is not on disk.
        """
        self._change_desired(running=False, reason=reason, caller=caller, bitrates={})
        kept = await self._desired.save()
        if not self._desired.running:
            await self._end_all(EndReason.STOPPED)
            await self._camera.closed()
        if not kept:
            raise self._desired.not_kept()

    @contextmanager
    def camera_in_use(self) -> Iterator[None]:
        """Keep the camera open for a short use.

        Raises: Rejected: `stopped`.
        """
        admit_use(running=self._desired.running and self._group is not None)
        self._demand.add_uses(+1)
        self._update_demand()
        try:
            yield
        finally:
            self._demand.add_uses(-1)
            self._update_demand()

    def camera_changed(self, error: CameraUnavailable | None, *, running: bool) -> None:
        """Notify the owners of live sessions when the picture freezes, and when it moves again."""
        if error is not None or running:
            self._camera_error = error
            for session in self._sessions.values():
                session.notify_camera(error)

    def apply_settings(self, settings: SessionSettings, idle_stop_s: float) -> None:
        """Apply changed limits. Sessions above a lowered limit stay."""
        self._settings = settings
        self._demand.idle_stop_s = idle_stop_s
        self._demand_changed.set()
        self._on_change()

    def repeat_camera(self) -> None:
        """Send the last camera notifications again, after the link was down."""
        for session in self._sessions.values():
            session.repeat_camera(self._camera_error)

    # The daemon's part.

    async def run(self, ready: asyncio.Event) -> None:
        """Run the sessions and open and close the camera on demand until cancelled, then end every session."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                ready.set()
                try:
                    await self._follow_demand()
                finally:
                    # Inside the group, which would cancel the tasks before they have notified the viewers.
                    self._group = None
                    await self._end_all(EndReason.SHUTDOWN)
        finally:
            self._camera.want(False)

    def on_time(self) -> bool:
        """Whether no session is stuck past its deadline."""
        now_s = self._now_s()
        deadlines = (session.machine.deadline_s() for session in self._sessions.values())
        return all(deadline_s is None or now_s < deadline_s + _STUCK_S for deadline_s in deadlines)

    async def _answer(self, session: Session, offer: Offer, body: OfferBody) -> str:
        stream = await self._camera.opened()
        peer = session.peer
        assert peer is not None
        self._check_quality(peer.quality)
        profile = read_profile_level(stream.profile_level_id)
        if profile is None:
            raise CameraUnavailable(
                f"the camera's stream has an H.264 profile that WebRTC cannot offer ({stream.profile_level_id})"
            )
        choice = offer.choose(profile)
        if not choice.fits and body.quality != "hd" and Quality.SD in self._camera.qualities:
            in_sd = offer.choose(profile.at_level(self._camera.sd_level_idc))
            if in_sd.fits:
                await peer.switch(Quality.SD)
                choice = in_sd
        await peer.accept(offer, choice)
        # Not earlier: an offer that is refused, or whose session has ended meanwhile, must not end another session.
        # Not later: the answer may wait for servers, and a further offer of this viewer would be refused meanwhile.
        self._still_open(session)
        if (leaving := self._leaving(session)) is not None:
            leaving.finish(EndReason.REPLACED)
        sdp = await peer.answer(offer, choice, trickle=body.trickle)
        self._still_open(session)
        await session.add_early_candidates(peer)
        session.answered()
        return sdp

    def _check_quality(self, quality: Quality) -> None:
        offered = self._camera.qualities
        if not offered:
            raise CameraUnavailable("the camera is not open now")
        if quality not in offered:
            raise Rejected(Code.UNSUPPORTED, f"this camera does not offer {quality}")

    def _most_bps(self, quality: Quality, body: StreamBody) -> int | None:
        """The new limit. None: keep the present one."""
        bounds: BitrateRange | None = getattr(body, quality)
        if bounds is None:
            return None
        lowest, highest = self._camera.bitrate_range(quality)
        for name in ("min_bps", "max_bps"):
            value = getattr(bounds, name)
            if value is not None and not lowest <= value <= highest:
                raise Rejected(Code.BAD_MESSAGE, f"body.{quality}.{name}: must be {lowest} to {highest}")
        return bounds.max_bps

    def _still_open(self, session: Session) -> None:
        if (end := session.machine.end) is not None:
            raise Rejected(end.code or Code.STOPPED, f"the session ended before its answer: {end}")

    def _leaving(self, session: Session) -> Session | None:
        """Return the session that gives way to a new one, among those that opened before it. None: none does.

        Raises: Rejected: `busy`.
        """
        earlier = itertools.takewhile(lambda other: other is not session, self._sessions.values())
        places = [other.place for other in earlier]
        limits = self._settings
        viewer = session.owner.proven
        leaving = admit(viewer, places, max_viewers=limits.max_viewers, max_per_viewer=limits.max_per_viewer)
        return None if leaving is None else self._sessions[leaving]

    def _register(self, session: Session, group: asyncio.TaskGroup) -> None:
        self._sessions[session.id] = session
        self._demand.set_sessions(len(self._sessions), self._now_s())
        self._update_demand()
        self._early.arrived(session.id)
        self._tasks[session.id] = group.create_task(self._run_session(session), name=f"session:{session.id}")
        self._counters["sessions_opened"] += 1
        self._on_change()

    async def _run_session(self, session: Session) -> None:
        log_session.set(session.id)
        try:
            await session.run()
        except Exception:
            # A bug ends this session only. Tests fail on the counter.
            log.exception("session ended because of a bug")
            self._counters["session_bugs"] += 1
            session.machine.end = EndReason.INTERNAL
        finally:
            self._forget(session)

    def _live(self, session: Session) -> None:
        path = session.peer.path if session.peer else None
        log.info("session live viewer=%r client=%r path=%s", session.owner.subject, session.owner.client, path)
        self._publish_event("session.live", session.id, {"viewer": session.owner.subject})
        session.notify_camera(self._camera_error)
        self._on_change()

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        self._tasks.pop(session.id, None)
        self._demand.set_sessions(len(self._sessions), self._now_s())
        self._demand_changed.set()
        reason = session.machine.end or EndReason.INTERNAL
        self._counters[f"sessions_ended_{reason}"] += 1
        facts = reason, session.owner.subject, session.owner.client, self._now_s() - session.opened_s
        log.info("session ended reason=%s viewer=%r client=%r duration_s=%.0f", *facts)
        if reason is not EndReason.REFUSED:
            # A refused offer was answered with an error reply.
            session.notify_closed(reason)
            body = {"viewer": session.owner.subject, "reason": reason.value, "code": reason.code}
            self._publish_event("session.closed", session.id, body)
        self._on_change()

    def _owned(self, session_id: str, caller: Principal) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise Rejected(Code.UNKNOWN_SESSION, "the session does not exist")
        if not caller.owns(session.owner):
            if caller.expired:
                raise Rejected(Code.EXPIRED, "the token has expired, and it did not open this session")
            raise Rejected(Code.FORBIDDEN, "this session belongs to another viewer")
        return session

    def _change_desired(
        self, *, running: bool, reason: str | None, caller: Principal, bitrates: Mapping[Quality, int]
    ) -> None:
        changed = self._desired.change(running=running, reason=reason, bitrates=bitrates)
        self._demand.set_running(running)
        for quality, bitrate_bps in bitrates.items():
            self._camera.set_bitrate(quality, bitrate_bps)
        self._update_demand()
        if changed:
            log.info("stream %s client=%r reason=%r", "started" if running else "stopped", caller.client, reason)
            self._publish_event("stream.started" if running else "stream.stopped", None, {"reason": reason})
        self._on_change()

    async def _end_all(self, reason: EndReason) -> None:
        """End the present sessions and wait for them, but not for sessions that open meanwhile."""
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
                log.info("camera closing: no viewers idle_stop_s=%g", self._demand.idle_stop_s)


def _quality(requested: str) -> Quality:
    # The bandwidth of the viewer's path is not known yet, so `auto` starts with HD.
    return Quality.SD if requested == "sd" else Quality.HD
