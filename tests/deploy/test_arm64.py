"""The bundle for a Raspberry Pi, installed and run under emulation. Slow, so only with `./dev test --arm64`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.client import CameraClient
from edge.mqtt.settings import MqttSettings
from tests.deploy.conftest import make_bundle, release_of
from tests.rigs.arm64_root import Arm64Root
from tests.rigs.daemon import free_port, toml
from tests.rigs.mosquitto import Mosquitto
from viewer import Viewer, no_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("arm64"), architecture="arm64")


@pytest.fixture(params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arm64Root]:
    with Arm64Root(request.param, tmp_path) as root:
        yield root


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


async def test_the_bundle_installs_and_a_viewer_gets_pictures(
    root: Arm64Root,
    broker: Mosquitto,
    bundle: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    where = root.path / "root"
    subprocess.run(["tar", "-xf", bundle, "-C", where], check=True)
    there = f"/root/{bundle.stem}"
    assert root.run("dpkg", "--print-architecture") == "arm64\n"
    began_s = time.monotonic()
    root.run(f"{there}/edge-release", "check", there)
    root.run(f"{there}/edge-release", "install", there)
    record_property("install_s", round(time.monotonic() - began_s))
    program = f"/opt/edge-streamer/releases/{release_of(bundle)}/bin/edge-streamer"
    assert root.run(program, "--version").strip() == "0.1.0"
    root.run(program, "token", "keygen", "--out", "/root/keys")
    root.run("install", "-D", "/root/keys/jwks.json", "/etc/edge-streamer/jwks.json")
    assert "ok" in root.run(program, "check-config", f"{there}/edge-streamer.toml")

    port = free_port()
    picture = {"width": 320, "height": 240, "fps": 5, "max_bps": 300_000}
    settings = {
        "device": {"id": "cam-1"},
        "mqtt": broker.settings(tls=False),
        "auth": {"mode": "off"},
        "camera": {
            "source": "synthetic",
            "open_timeout_s": 60.0,
            "hd": picture,
            "sd": {**picture, "width": 160, "height": 120},
        },
        "sessions": {"answer_timeout_s": 60.0, "connect_timeout_s": 60.0},
        "api": {"port": port},
    }
    (where / "settings.toml").write_text(toml(settings))
    log = tmp_path / "daemon.log"
    daemon = root.start(log, program, "run", "--config", "/root/settings.toml")
    try:
        mine = MqttSettings(**broker.settings(tls=False))
        async with CameraClient.connect(mine, "viewer", timeout_s=90) as client, asyncio.timeout(PATIENCE_S):
            camera = client.camera("cam-1")
            await camera.online()
            with no_decoder():
                viewer = Viewer(camera)
                record_property("first_picture_ms", round(await viewer.join()))
                since_ns = time.monotonic_ns()
                await viewer.wait_for_pictures(25, PATIENCE_S)
                record_property("fps", round(viewer.frame_rate(since_ns), 1))
                status = await asyncio.to_thread(
                    lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/status", timeout=30))
                )
                assert status["counters"]["access_units"] >= 25
                assert status["viewers"]["sender"] == "own"
                await viewer.close()
    except Exception as error:
        error.add_note(log.read_text()[-4000:])
        raise
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(60)
    assert "Traceback" not in log.read_text()
