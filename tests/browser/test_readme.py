"""Run the README's code, and start the demo with the README's command as an unprivileged user."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from edge.client import Signer
from edge.mqtt.settings import MqttSettings
from tests.browser.stack import wait_for_frames, wait_for_state
from tests.rigs.chromium import chromium
from tests.rigs.daemon import ROOT, Daemon, free_port, required_auth
from tests.rigs.mosquitto import Mosquitto


async def test_readme_code_returns_an_answer_that_connects(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    broker = Mosquitto(tmp_path)
    broker.start()
    signer = Signer.generate()
    daemon = Daemon(tmp_path, broker.settings(tls=False), auth=required_auth(signer, tmp_path))
    try:
        await asyncio.to_thread(daemon.start)
        viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        viewer.addTransceiver("video", direction="recvonly")
        connected = asyncio.Event()

        @viewer.on("connectionstatechange")
        def on_state() -> None:
            if viewer.connectionState == "connected":
                connected.set()

        await viewer.setLocalDescription(await viewer.createOffer())
        mqtt = MqttSettings(**broker.settings(tls=False))
        answer = await names["answer_browser"](mqtt, signer, "cam-1", "anna", viewer.localDescription.sdp)
        await viewer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await asyncio.wait_for(connected.wait(), 10)
        await viewer.close()
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()


def unprivileged_user() -> tuple[int, int]:
    """The user and group IDs for the demo: those of the tests, or of `nobody` if the tests run as root."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def processes_in(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in command:
                found.append(command)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_demo_on_a_fresh_checkout_shows_video_and_exits_cleanly() -> None:
    uid, gid = unprivileged_user()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        checkout = home / "edge-streamer"
        checkout.mkdir()
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).exists():
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, checkout / name)
        for path in [home, *home.rglob("*")]:
            os.chown(path, uid, gid)
        http_port = free_port()
        # Prefer the system's Python, because Debian's has no ensurepip by default.
        environment = {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "SSL_", "LANG"))}
        search = "/usr/local/bin:/usr/bin:/bin" if Path("/usr/bin/python3").exists() else os.environ["PATH"]
        ports = ["--http-port", str(http_port), "--api-port", str(free_port()), "--mqtt-port", str(free_port())]
        errors = (home / "errors").open("w")
        demo = subprocess.Popen(
            ["./dev", "demo", "--no-open", *ports],
            cwd=checkout,
            env={**environment, "HOME": str(home), "PATH": search},
            user=uid,
            group=gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert demo.stdout is not None
        try:
            line = ""
            while not line.startswith("ready "):
                line = await asyncio.to_thread(demo.stdout.readline)
                assert line, (home / "errors").read_text()
            assert line == f"ready http://127.0.0.1:{http_port}/\n"
            async with chromium() as browser:
                page = await browser.new_page()
                await page.goto(line.split()[1])
                await wait_for_state(page, "live", 30)
                await wait_for_frames(page)
                # Ctrl-C in a terminal signals the whole process group.
                os.killpg(demo.pid, signal.SIGINT)
                assert await asyncio.to_thread(demo.wait, 15) == 0, (home / "errors").read_text()
                await wait_for_state(page, "lost")
            deadline_s = time.monotonic() + 5
            while processes_in(home) and time.monotonic() < deadline_s:
                await asyncio.sleep(0.1)
            assert processes_in(home) == []
            assert "Traceback" not in (home / "errors").read_text()
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)
                demo.wait()
            demo.stdout.close()
            errors.close()
