"""What the viewer page tells a person, state by state, in a real Chromium; the device is scripted."""

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
from tests.browser.stack import state
from tests.rigs.chromium import chromium
from tests.rigs.daemon import free_port
from tests.rigs.fake_device import FakeDevice, mqtt_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import BrowserContext, Page

    from edge.client import Camera

pytestmark = pytest.mark.slow


@pytest.fixture
async def device() -> AsyncIterator[FakeDevice]:
    device = FakeDevice(free_port())
    async with EmbeddedBroker("127.0.0.1", device.port), device.running_device():
        yield device


@pytest.fixture
async def camera(device: FakeDevice) -> AsyncIterator[Camera]:
    async with CameraClient.connect(mqtt_settings(device.port), "bff-7") as client:
        await device.meet(client.camera("cam-1"))
        yield client.camera("cam-1")


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def backend(camera: Camera, port: int) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        async with serving(make_backend(camera, Signer.generate(), BackendSettings()), listener):
            yield f"http://127.0.0.1:{port}/"


@pytest.fixture
async def url(camera: Camera) -> AsyncIterator[str]:
    async with backend(camera, free_port()) as url:
        yield url


async def opened(browser: BrowserContext, url: str) -> Page:
    page = await browser.new_page()
    await page.goto(url)
    return page


async def words(page: Page) -> str:
    return await page.inner_text("main")


async def test_busy_says_when_it_tries_again_and_does(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected", retry_after_s=2)
    page = await opened(browser, url)
    await state(page, "busy")
    await page.get_by_text("Trying again in").wait_for()
    assert "All places are taken" in await words(page)
    assert "5 of 5 viewers are connected." in await words(page)
    assert "All places are taken" in (await page.get_by_role("status").text_content() or "")
    await device.got("session.offer", 2)
    first, second = [command for command, _ in device.commands if command.type == "session.offer"]
    assert (second.expires_at - first.expires_at).total_seconds() >= 2


async def test_stopped(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.STOPPED, "the camera was stopped", retry_after_s=1)
    page = await opened(browser, url)
    await state(page, "stopped")
    assert "The camera is stopped" in await words(page)
    # It checks gently: no word changes while it does.
    await device.got("session.offer", 2)
    await state(page, "stopped")


@pytest.mark.parametrize(
    ("refusal", "wanted", "told"),
    [
        (Rejected(Code.CAMERA_UNAVAILABLE, "no camera is connected"), "unavailable", "No camera is connected."),
        (Rejected(Code.NO_COMMON_CODEC, "no H.264"), "unavailable", "This browser cannot show the camera"),
        (Rejected(Code.FORBIDDEN, "not yours"), "unavailable", "You may not watch this camera"),
        (Rejected(Code.TIMEOUT, "no answer"), "lost", "The camera does not answer."),
        (Rejected(Code.INTERNAL, "a fault of the device"), "lost", "A fault of the device."),
    ],
)
async def test_a_refusal_in_words(  # noqa: PLR0917
    browser: BrowserContext, device: FakeDevice, url: str, refusal: Rejected, wanted: str, told: str
) -> None:
    device.refusals["session.offer"] = refusal
    page = await opened(browser, url)
    await state(page, wanted)
    assert told in await words(page)


async def test_a_browser_without_h264(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    await browser.add_init_script(
        """const createOffer = RTCPeerConnection.prototype.createOffer;
        RTCPeerConnection.prototype.createOffer = async function () {
          const { type, sdp } = await createOffer.call(this);
          return { type, sdp: sdp.replaceAll("H264", "VP8") };
        };""",
    )
    page = await opened(browser, url)
    await state(page, "unavailable")
    assert "This browser cannot show the camera" in await words(page)
    assert not device.commands


async def test_a_backend_that_is_gone_and_comes_back(
    browser: BrowserContext, device: FakeDevice, camera: Camera
) -> None:
    device.refusals["session.offer"] = Rejected(Code.STOPPED, "the camera was stopped", retry_after_s=1)
    port = free_port()
    async with backend(camera, port) as url:
        page = await opened(browser, url)
        await state(page, "stopped")
    await state(page, "lost")
    assert "The service behind this page does not answer." in await words(page)
    async with backend(camera, port):
        await state(page, "stopped", 40)


async def test_the_offer_leaves_before_the_candidates_and_they_follow(
    browser: BrowserContext, device: FakeDevice, url: str
) -> None:
    device.silent.add("session.offer")
    page = await opened(browser, url)
    (offer,) = await device.got("session.offer")
    assert offer.trickle
    assert "a=candidate" not in offer.sdp
    candidates = await device.got("session.candidate")
    while candidates[-1].candidate is not None:
        candidates = await device.got("session.candidate", len(candidates) + 1)
    assert {body.session for body in candidates} == {offer.session}
    assert candidates[0].candidate.startswith("candidate:")
    assert await page.evaluate("document.body.dataset.state") == "asking"


async def test_a_session_that_the_device_ends(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.silent.add("session.offer")
    page = await opened(browser, url)
    (offer,) = await device.got("session.offer")
    device.sessions[offer.session] = "edge/v1/cam-1/reply/bff-7"
    await device.end(offer.session, EndReason.STOPPED)
    await state(page, "stopped")


@pytest.mark.parametrize("how", ["button", "closed tab", "reload"])
async def test_who_leaves_gives_the_place_back(browser: BrowserContext, device: FakeDevice, url: str, how: str) -> None:
    device.silent.add("session.offer")
    page = await opened(browser, url)
    (offer,) = await device.got("session.offer")
    device.sessions[offer.session] = "edge/v1/cam-1/reply/bff-7"
    match how:
        case "button":
            await page.get_by_role("button", name="Stop watching").click()
            await state(page, "off")
        case "closed tab":
            await page.close(run_before_unload=True)
        case "reload":
            await page.reload()
    assert (await device.got("session.close"))[0].session == offer.session
    if how == "button":
        await page.get_by_role("button", name="Watch", exact=True).click()
        await device.got("session.offer", 2)
        await state(page, "asking")


async def test_the_plain_page_says_why_not(browser: BrowserContext, device: FakeDevice, url: str) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected")
    page = await opened(browser, f"{url}plain")
    await page.get_by_text("5 of 5 viewers are connected").wait_for()
    (offer,) = await device.got("session.offer")
    assert "a=candidate" in offer.sdp
    assert not offer.trickle
