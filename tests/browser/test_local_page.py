"""What a page of another site can do with the technician's page in the same browser: link to it, and nothing else."""

from __future__ import annotations

import socket

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from edge.demo.server import serving
from tests.rigs.chromium import chromium
from tests.service.test_local_server import serving as local_page

pytestmark = pytest.mark.slow

ATTACK = """<!doctype html>
<a href="http://127.0.0.1:PORT/">the camera</a>
<iframe src="http://127.0.0.1:PORT/"></iframe>
<img src="http://127.0.0.1:PORT/api/v1/snapshot.jpg">
<script>
  const api = "http://127.0.0.1:PORT/api/v1/";
  const sent = [
    fetch(api + "stream/stop", { method: "POST", mode: "no-cors" }),
    fetch(api + "camera", { mode: "no-cors" }),
    fetch(api + "status"),
  ];
  window.results = Promise.allSettled(sent).then((all) => all.map((one) => one.status + (one.value?.type ?? "")));
</script>"""


async def test_another_site_cannot_frame_the_page_or_use_the_camera() -> None:
    async with local_page() as site, chromium() as browser:
        attacker = FastAPI()
        html = ATTACK.replace("PORT", str(site.port))
        attacker.add_api_route("/", lambda: html, response_class=HTMLResponse)
        # For a browser, localhost and 127.0.0.1 are different sites.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with serving(attacker, listener):
                page = await browser.new_page()
                await page.goto(f"http://localhost:{listener.getsockname()[1]}/", wait_until="load")
                # Fetches without CORS are refused by the server, and hidden from the page by the browser (CORP).
                assert await page.evaluate("window.results") == 3 * ["rejected"]
                assert await page.evaluate("document.querySelector('img').naturalWidth") == 0
                assert page.frames[1].url == "chrome-error://chromewebdata/"
                assert (site.device.reasons, site.device.uses) == ([], 0)
                await page.click("a")
                async with page.expect_response("**/api/v1/stream/stop"):
                    await page.click("#stop")
                assert site.device.reasons == ["local page"]
