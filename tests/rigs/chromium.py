"""A real Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from playwright.async_api import async_playwright

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import BrowserContext

_FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
]


@asynccontextmanager
async def chromium(
    *, hide_addresses: bool = True, width: int = 1280, height: int = 800
) -> AsyncIterator[BrowserContext]:
    """A browser with a new profile. `hide_addresses`: host candidates have `.local` names, the browser's default."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "chromium is not installed"
    flags = list(_FLAGS)
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    if not hide_addresses:
        flags.append("--disable-features=WebRtcHideLocalIpsWithMdns")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                profile,
                executable_path=program,
                headless=True,
                args=flags,
                viewport={"width": width, "height": height},
            )
            try:
                yield context
            finally:
                await context.close()
