"""The states and texts of the viewer page, in a real Chromium with a scripted device."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from edge.client import CameraClient, Signer
from edge.contract.codes import Code, EndReason
from edge.demo.backend import BackendSettings, make_backend
from edge.demo.broker import EmbeddedBroker
from edge.demo.server import serving
from edge.errors import Rejected
from tests.browser.stack import wait_for_state
from tests.rigs.chromium import chromium
from tests.rigs.daemon import free_port
from tests.rigs.fake_device import FakeDevice, mqtt_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import BrowserContext, Page

    from edge.client import RemoteCamera

pytestmark = pytest.mark.slow

CREDENTIALS = "performance.getEntriesByName(location.origin + '/api/turn-credentials').length"
"""How often the page has fetched the credentials of the TURN servers."""


@pytest.fixture
async def device() -> AsyncIterator[FakeDevice]:
    device = FakeDevice(free_port())
    async with EmbeddedBroker("127.0.0.1", device.port), device.running_device():
        yield device


@pytest.fixture
async def camera(device: FakeDevice) -> AsyncIterator[RemoteCamera]:
    async with CameraClient.connect(mqtt_settings(device.port), "bff-7") as client:
        await device.wait_for_client(client.camera("cam-1"))
        yield client.camera("cam-1")


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def backend(camera: RemoteCamera, port: int) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        async with serving(make_backend(camera, Signer.generate(), BackendSettings()), listener):
            yield f"http://127.0.0.1:{port}/"


@pytest.fixture
async def url(camera: RemoteCamera) -> AsyncIterator[str]:
    async with backend(camera, free_port()) as url:
        yield url


async def open_page(browser: BrowserContext, url: str) -> Page:
    page = await browser.new_page()
    await page.goto(url)
    return page


async def visible_text(page: Page) -> str:
    return await page.inner_text("main")


async def test_busy_shows_the_retry_time_and_retries(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected", retry_after_s=2)
    page = await open_page(browser, url)
    await wait_for_state(page, "busy")
    await page.get_by_text("Retrying in").wait_for()
    assert "The viewer limit is reached" in await visible_text(page)
    assert "5 of 5 viewers are connected." in await visible_text(page)
    assert "The viewer limit is reached" in (await page.get_by_role("status").text_content() or "")
    await device.wait_for_commands("session.offer", 2)
    first, second = [command for command, _ in device.commands if command.type == "session.offer"]
    assert (second.expires_at - first.expires_at).total_seconds() >= 2


async def test_stopped_is_shown_and_retried_silently(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.STOPPED, "the camera was stopped", retry_after_s=1)
    page = await open_page(browser, url)
    await wait_for_state(page, "stopped")
    assert "The camera is stopped" in await visible_text(page)
    # The texts do not change during a retry.
    await device.wait_for_commands("session.offer", 2)
    await wait_for_state(page, "stopped")


@pytest.mark.parametrize(
    ("refusal", "expected", "text"),
    [
        (Rejected(Code.CAMERA_UNAVAILABLE, "no camera is connected"), "unavailable", "No camera is connected."),
        (Rejected(Code.NO_COMMON_CODEC, "no H.264"), "unavailable", "This browser cannot show the camera"),
        (Rejected(Code.FORBIDDEN, "not yours"), "unavailable", "You do not have permission to watch this camera"),
        (Rejected(Code.TIMEOUT, "no answer"), "lost", "The camera does not answer."),
        (Rejected(Code.INTERNAL, "a fault of the device"), "lost", "A fault of the device."),
    ],
)
async def test_rejection_is_shown_as_text(  # noqa: PLR0917
    browser: BrowserContext, device: FakeDevice, url: str, refusal: Rejected, expected: str, text: str
) -> None:
    device.refusals["session.offer"] = refusal
    page = await open_page(browser, url)
    await wait_for_state(page, expected)
    assert text in await visible_text(page)


async def test_browser_without_h264_sends_no_offer(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    await browser.add_init_script(
        """const createOffer = RTCPeerConnection.prototype.createOffer;
        RTCPeerConnection.prototype.createOffer = async function () {
          const { type, sdp } = await createOffer.call(this);
          return { type, sdp: sdp.replaceAll("H264", "VP8") };
        };""",
    )
    page = await open_page(browser, url)
    await wait_for_state(page, "unavailable")
    assert "This browser cannot show the camera" in await visible_text(page)
    assert not device.commands


async def test_page_reconnects_when_the_backend_returns(
    browser: BrowserContext, device: FakeDevice, camera: RemoteCamera
) -> None:
    device.refusals["session.offer"] = Rejected(Code.STOPPED, "the camera was stopped", retry_after_s=1)
    port = free_port()
    async with backend(camera, port) as url:
        page = await open_page(browser, url)
        await wait_for_state(page, "stopped")
    await wait_for_state(page, "lost")
    assert "The server of this page does not answer." in await visible_text(page)
    async with backend(camera, port):
        await wait_for_state(page, "stopped", 40)


async def test_offer_is_sent_without_candidates_and_they_follow(
    browser: BrowserContext, device: FakeDevice, url: str
) -> None:
    device.silent.add("session.offer")
    page = await open_page(browser, url)
    (offer,) = await device.wait_for_commands("session.offer")
    assert offer.trickle
    assert "a=candidate" not in offer.sdp
    candidates = await device.wait_for_commands("session.candidate")
    while candidates[-1].candidate is not None:
        candidates = await device.wait_for_commands("session.candidate", len(candidates) + 1)
    assert {body.session for body in candidates} == {offer.session}
    assert candidates[0].candidate.startswith("candidate:")
    assert await page.evaluate("document.body.dataset.state") == "requesting"


async def test_session_ended_by_the_device_is_shown(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.silent.add("session.offer")
    page = await open_page(browser, url)
    (offer,) = await device.wait_for_commands("session.offer")
    device.sessions[offer.session] = "edge/v1/cam-1/reply/bff-7"
    await device.end(offer.session, EndReason.STOPPED)
    await wait_for_state(page, "stopped")


@pytest.mark.parametrize(
    ("reason", "state", "text", "credentials"),
    [
        (EndReason.RELAY_LOST, "lost", "The relay server ended the connection.", 2),
        (EndReason.REPLACED, "busy", "Another connection took this place", 1),
    ],
)
async def test_a_lost_relay_or_place_is_shown_and_a_new_offer_follows(  # noqa: PLR0917
    browser: BrowserContext, device: FakeDevice, url: str, reason: EndReason, state: str, text: str, credentials: int
) -> None:
    device.silent.add("session.offer")
    page = await open_page(browser, url)
    (offer,) = await device.wait_for_commands("session.offer")
    await page.wait_for_function(f"{CREDENTIALS} === 1")
    device.sessions[offer.session] = "edge/v1/cam-1/reply/bff-7"
    await device.end(offer.session, reason)
    await wait_for_state(page, state)
    assert text in await visible_text(page)
    await device.wait_for_commands("session.offer", 2)
    # Those of a lost relay are not used again.
    await page.wait_for_function(f"{CREDENTIALS} === {credentials}")


@pytest.mark.parametrize("how", ["button", "closed tab", "reload"])
async def test_leaving_the_page_closes_the_session(
    browser: BrowserContext, device: FakeDevice, url: str, how: str
) -> None:
    device.silent.add("session.offer")
    page = await open_page(browser, url)
    (offer,) = await device.wait_for_commands("session.offer")
    device.sessions[offer.session] = "edge/v1/cam-1/reply/bff-7"
    match how:
        case "button":
            await page.get_by_role("button", name="Stop watching").click()
            await wait_for_state(page, "off")
        case "closed tab":
            await page.close(run_before_unload=True)
        case "reload":
            await page.reload()
    assert (await device.wait_for_commands("session.close"))[0].session == offer.session
    if how == "button":
        await page.get_by_role("button", name="Watch", exact=True).click()
        await device.wait_for_commands("session.offer", 2)
        await wait_for_state(page, "requesting")


async def test_plain_page_shows_the_error(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected")
    page = await open_page(browser, f"{url}plain")
    await page.get_by_text("5 of 5 viewers are connected").wait_for()
    (offer,) = await device.wait_for_commands("session.offer")
    assert "a=candidate" in offer.sdp
    assert not offer.trickle
