"""docs/nginx/edge-streamer.conf: the technician's page behind a real nginx, with TLS and a password."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.rigs.certificates import Authority
from tests.rigs.daemon import Daemon, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SAMPLE = Path(__file__).parents[2] / "docs/nginx/edge-streamer.conf"
PASSWORD = ("technician", "ladder")


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the proxy, with nobody's password."""
    daemon = Daemon(tmp_path, {"host": "127.0.0.1", "port": free_port(), "tls": False})
    await asyncio.to_thread(daemon.start)
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD[1]], check=True, capture_output=True, text=True
    ).stdout
    (tmp_path / "htpasswd").write_text(f"{PASSWORD[0]}:{hashed}")
    port = free_port()
    text = (
        SAMPLE.read_text().replace("listen 8443", f"listen 127.0.0.1:{port}").replace("    listen [::]:8443 ssl;\n", "")
    )
    text = text.replace("/etc/nginx/edge-streamer.pem", str(certificate)).replace(
        "/etc/nginx/edge-streamer.key", str(key)
    )
    text = text.replace("/etc/nginx/edge-streamer.htpasswd", str(tmp_path / "htpasswd"))
    text = text.replace(":8081", f":{daemon.api_port}")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"user root; pid {tmp_path}/nginx.pid; error_log {tmp_path}/nginx.log; daemon off;\n"
        f"events {{}}\nhttp {{ access_log off;\n{text}}}\n"
    )
    nginx = subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config)])
    try:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # for extensions that these certificates leave out
        async with httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=context) as client:
            for _ in range(100):
                try:
                    await client.get("/")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            yield client
    finally:
        nginx.terminate()
        nginx.wait(10)
        await asyncio.to_thread(daemon.end)


async def test_the_page_needs_the_password_and_works_with_it(page: httpx.AsyncClient) -> None:
    assert (await page.get("/")).status_code == 401
    assert (await page.post("/api/v1/stream/stop")).status_code == 401
    page.auth = httpx.BasicAuth(*PASSWORD)
    assert "<html" in (await page.get("/")).text
    own = str(page.base_url).rstrip("/")
    assert (await page.post("/api/v1/stream/stop", headers={"Origin": own})).status_code == 200
    assert (await page.post("/api/v1/stream/start", headers={"Origin": own})).status_code == 200


async def test_another_sites_page_cannot_use_it(page: httpx.AsyncClient) -> None:
    page.auth = httpx.BasicAuth(*PASSWORD)
    for origin in ("https://evil.example", "null", "http://localhost", "https://localhost.evil.example:8443"):
        refused = await page.post("/api/v1/stream/stop", headers={"Origin": origin})
        assert refused.status_code == 403, origin
