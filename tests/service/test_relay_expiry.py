"""Relays that a TURN server ends or does not refresh, with a real coturn."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from edge.contract.messages import IceServer
from edge.demo.turn import IceSettings, TurnSettings, ice_servers
from tests.rigs.coturn import Coturn
from tests.service.test_peer import Events, Viewer, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIFETIME_S = 5
"""Of temporary credentials, until coturn refuses them."""


@asynccontextmanager
async def relayed(*flags: str) -> AsyncIterator[tuple[Coturn, Events]]:
    """A viewer that gets pictures through a relay of the device."""
    coturn = Coturn("u", "p", *flags)
    coturn.start()
    server = IceServer.model_validate({"urls": turn_url(coturn), "username": "u", "credential": "p"})
    try:
        async with relayed_by(coturn, server) as (events, _):
            yield coturn, events
    finally:
        coturn.stop()


@asynccontextmanager
async def relayed_until_credentials_expire(directory: Path) -> AsyncIterator[tuple[Coturn, Events, Viewer]]:
    """A viewer whose relay has temporary credentials of the reference backend. The body begins after they expired."""
    secret_file = directory / "turn-secret"
    secret_file.write_text("s3cret")
    coturn = Coturn("", "", "--max-allocate-lifetime=2", secret="s3cret")
    coturn.start()
    turn = TurnSettings(urls=[turn_url(coturn)], secret_file=secret_file)
    expires_s = int(time.time()) + LIFETIME_S
    [server] = ice_servers(IceSettings(turn=turn), expires_s - turn.ttl_s)
    try:
        async with relayed_by(coturn, server) as (events, viewer):
            await asyncio.sleep(expires_s + 1.1 - time.time())
            yield coturn, events, viewer
    finally:
        coturn.stop()


def turn_url(coturn: Coturn) -> str:
    return f"turn:{coturn.host}:{coturn.port}"


@asynccontextmanager
async def relayed_by(coturn: Coturn, server: IceServer) -> AsyncIterator[tuple[Events, Viewer]]:
    """A viewer that gets pictures through a relay on this server. Yields the events of its peer, and the viewer."""
    async with stage() as on, asyncio.timeout(20):
        viewer, events = Viewer(), Events()
        only_relays = {"allowed": [coturn.host], "ports": [coturn.port], "interfaces": {"allow": []}}
        peer, answer = await on.answer(events, await viewer.offer(), [server], trickle=False, **only_relays)
        await viewer.take(answer)
        await viewer.pts.get()
        assert (peer.path or "").startswith("relay/")
        yield events, viewer
        await peer.close()
        await viewer.pc.close()


def change_credentials(coturn: Coturn) -> None:
    """The server refuses the old ones from now on, as when they expire."""
    coturn.stop()
    coturn.credentials = "u:other"
    coturn.start()


async def test_a_relay_that_the_server_does_not_refresh_ends_its_session() -> None:
    async with relayed("--max-allocate-lifetime=1") as (coturn, events):
        change_credentials(coturn)
        await events.relay_gone.wait()
        assert not events.gone.is_set()


async def test_a_refused_channel_ends_its_session_before_the_picture_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.streaming.aiortc_ice.CHANNEL_REFRESH_S", 0.5)
    async with relayed() as (coturn, events):
        change_credentials(coturn)
        await events.relay_gone.wait()


async def test_channels_are_refreshed_although_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioice.turn")
    monkeypatch.setattr("edge.streaming.aiortc_ice.CHANNEL_REFRESH_S", 0.5)
    async with relayed():
        now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: now_s - 3600)
        caplog.clear()
        while "TURN channel bound" not in caplog.text:
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_coturn_refreshes_a_relay_whose_temporary_credentials_have_expired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """coturn checks the expiry when it allocates a relay, and keeps the key for the refreshes (see its issue 1204)."""
    caplog.set_level(logging.INFO, "aioice.turn")
    async with relayed_until_credentials_expire(tmp_path) as (_, events, viewer):
        caplog.clear()
        while caplog.text.count("TURN allocation refreshed") < 2:
            await asyncio.sleep(0.05)
        while not viewer.pts.empty():
            viewer.pts.get_nowait()
        for _ in range(10):
            await viewer.pts.get()
        assert not events.relay_gone.is_set()


@pytest.mark.slow
async def test_expired_temporary_credentials_end_the_session_when_coturn_was_restarted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioice.turn")
    async with relayed_until_credentials_expire(tmp_path) as (coturn, events, _):
        coturn.stop()
        coturn.start()
        await events.relay_gone.wait()
        assert "401" in caplog.text
        assert not events.gone.is_set()
