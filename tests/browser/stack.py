"""All parts for real: mosquitto with TLS and client certificates, the daemon, the backend, Chromium."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.client import CameraClient, Signer
from edge.demo.backend import BackendSettings, make_backend
from edge.demo.server import serving
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.chromium import chromium
from tests.rigs.daemon import Daemon, required_auth
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import BrowserContext, Page

    from edge.client import RemoteCamera

# Reads the time code from the picture that the page shows; null if there is none.
READ_CODE = """() => {
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  if (!video.videoWidth) return null;
  canvas.width = video.videoWidth; canvas.height = 16;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const now = Date.now(), block = Math.floor(canvas.width / 40);
  let bits = "";
  const light = (x) => context.getImageData(x, 8, 1, 1).data[1] > 128;
  for (let i = 0; i < 40; i++) bits += light(i * block + (block >> 1)) ? "1" : "0";
  const value = parseInt(bits.slice(0, 32), 2), sum = parseInt(bits.slice(32), 2);
  const want = ((value >>> 24) ^ (value >>> 16) ^ (value >>> 8) ^ value ^ 0x5a) & 0xff;
  return want === sum ? {value, late: (now >>> 0) - value} : null;
}"""


@dataclass
class Stack:
    """The running parts."""

    broker: Mosquitto
    daemon: Daemon
    camera: RemoteCamera
    signer: Signer
    browser: BrowserContext
    url: str

    def token(self, scope: str = "view") -> str:
        """A new token for the test's own commands."""
        return self.signer.sign(self.camera.device, "test", [scope])

    async def page(self, path: str = "/") -> Page:
        page = await self.browser.new_page()
        await page.goto(self.url + path)
        return page

    async def live_page(self) -> Page:
        """Open a page and wait until it shows video."""
        page = await self.page()
        await wait_for_state(page, "live")
        await wait_for_frames(page)
        return page


async def wait_for_state(page: Page, expected: str, timeout_s: float = 20) -> None:
    await page.wait_for_function(
        "expected => document.body.dataset.state === expected", arg=expected, timeout=timeout_s * 1000
    )


async def frames(page: Page) -> int:
    count: int = await page.evaluate("window.viewer.framesDecoded()")
    return count


async def wait_for_frames(page: Page, count: int = 10, timeout_s: float = 15) -> float:
    """Wait until the page has decoded `count` more frames. Returns: the duration in seconds."""
    started_s, first = time.monotonic(), await frames(page)
    async with asyncio.timeout(timeout_s):
        while await frames(page) < first + count:
            await asyncio.sleep(0.05)
    return time.monotonic() - started_s


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    directory: Path,
    *,
    environment: dict[str, str] | None = None,
    backend: BackendSettings | None = None,
    hide_addresses: bool = True,
    **sections: Any,
) -> AsyncIterator[Stack]:
    """Start all parts. At the end, stop them and fail if the daemon logged a traceback."""
    authority = Authority(directory)
    broker = Mosquitto(directory, authority=authority)
    broker.start()

    def identity(name: str) -> dict[str, Any]:
        certificate, key = authority.issue(name)
        files = {"ca_file": str(authority.ca_file), "cert_file": str(certificate), "key_file": str(key)}
        return broker.settings(reconnect_cap_s=1, **files)

    signer = Signer.generate()
    sections["auth"] = required_auth(signer, directory)
    sections["ice"] = {"allow_loopback": True, **sections.get("ice", {})}
    daemon = Daemon(directory, identity("cam-1"), environment=environment, **sections)
    try:
        await asyncio.to_thread(daemon.start)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            async with CameraClient.connect(MqttSettings(**identity("bff-1")), "bff-1") as client:
                camera = client.camera("cam-1")
                app = make_backend(camera, signer, backend or BackendSettings())
                async with serving(app, listener), chromium(hide_addresses=hide_addresses) as browser:
                    yield Stack(broker, daemon, camera, signer, browser, f"http://127.0.0.1:{port}")
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
