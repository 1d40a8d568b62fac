"""State and settings, from the previous release to this one and back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge.client import CameraClient
from edge.contract.messages import Command
from edge.contract.topics import Topics
from edge.mqtt.settings import MqttSettings
from tests.rigs.aws_shadow import AwsShadow
from tests.rigs.daemon import ROOT, Daemon, toml
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import Iterator

WHEELS = Path(__file__).parents[1] / "releases"
SMALL = {"hd": {"width": 320, "height": 240, "fps": 15}, "sd": {"width": 160, "height": 120, "fps": 15}}


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the previous release's `edge` package."""
    (wheel,) = WHEELS.glob("*.whl")
    directory = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


def set_controls(daemon: Daemon, controls: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.api_port}/api/v1/camera",
        method="PATCH",
        data=json.dumps(controls).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["update", "rollback"])
async def test_the_state_of_one_release_is_read_by_the_other(
    direction: str, previous: Path, tmp_path: Path, broker: Mosquitto
) -> None:
    first, second = (previous, ROOT) if direction == "update" else (ROOT, previous)
    (tmp_path / "first").mkdir()
    mqtt = broker.settings(tls=False, reconnect_cap_s=1, shadow="aws")
    state = {"dir": str(tmp_path / "state")}
    settings = MqttSettings(**broker.settings(tls=False))
    before = Daemon(tmp_path / "first", mqtt, code=first, camera=SMALL, state=state)
    after = Daemon(tmp_path, mqtt, code=second, camera=SMALL, state=state)
    expires_at = datetime.now(UTC) + timedelta(minutes=4)
    stop = Command(
        v=1, id="stop-1", type="stream.stop", expires_at=expires_at, reply_to=Topics("cam-1").reply("bff"), token=None
    )
    try:
        async with AwsShadow(settings).serving() as shadow, CameraClient.connect(settings, "bff") as client:
            await asyncio.to_thread(before.start)
            version = await shadow.desire({"sessions": {"max_viewers": 2}})
            await shadow.until(lambda: shadow.outcome == ("applied", version))
            await client.camera("cam-1").online()
            await client.send(stop, Topics("cam-1"))
            await asyncio.to_thread(before.wait_for_status, lambda s: s["stream"]["wanted"] == "stopped")
        before.post("/api/v1/stream/start")
        set_controls(before, {"brightness": 0.25})
        broker.stop()
        await asyncio.to_thread(before.wait_for_status, lambda s: not s["broker"]["connected"])
        # These happen while the broker is away: they are kept on disk, for the release that runs next.
        before.post("/api/v1/stream/stop")
        assert await asyncio.to_thread(before.stop) == 0

        broker.start()
        async with CameraClient.connect(settings, "bff") as client:
            camera = client.camera("cam-1")
            events = camera.events()
            # Nobody would get the kept events of a device that is online before this client.
            async with asyncio.timeout(20):
                while client.link_fault() is not None:
                    await asyncio.sleep(0.05)
            await asyncio.to_thread(after.start)
            status = after.status()
            assert status is not None
            assert status["stream"]["wanted"] == "stopped"
            assert status["viewers"]["limit"] == 2
            await camera.online()
            async with asyncio.timeout(20):
                event = await anext(events)
                while event.type != "stream.stopped":
                    event = await anext(events)
            # A start, then the stop of before once more: it was carried out by the other release, and is not again.
            await camera.start("day")
            await client.send(stop, Topics("cam-1"))
            viewer = Viewer()
            await viewer.watch(camera)
            await viewer.wait_for_pictures()
            await viewer.close()
            assert (await camera.status()).stream.wanted == "running"
        status = after.status()
        assert status is not None
        assert status["camera"]["controls"]["brightness"] == 0.25
        assert "cannot be read" not in after.log()
    finally:
        after.end()
        before.end()


DUMP = """
import sys, pathlib
from edge.settings import load_settings
print(load_settings(pathlib.Path(sys.argv[1])).model_dump_json())
"""


def loaded(code: Path, settings: Path) -> dict[str, Any]:
    """What a release makes of a settings file: every setting, with its value or its default."""
    command = [sys.executable, "-c", DUMP, str(settings)]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def without_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: without_null(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def common(fields: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The fields that the other has, too."""
    return {
        name: common(value, other[name]) if isinstance(value, dict) and isinstance(other[name], dict) else value
        for name, value in fields.items()
        if name in other
    }


def sample_for(code: Path, file: Path) -> Path:
    """Write this release's sample, without the sections that another release does not have."""
    sample = tomllib.loads((ROOT / "config/edge-streamer.toml").read_text())
    minimal = {name: sample[name] for name in ("device", "mqtt", "auth")}
    file.write_text(toml(minimal))
    file.write_text(toml(common(sample, loaded(code, file))))
    return file


def test_every_setting_of_the_previous_release_is_read_and_means_the_same(previous: Path, tmp_path: Path) -> None:
    written = tmp_path / "settings.toml"
    old = without_null(loaded(previous, sample_for(previous, written)))
    written.write_text(toml(old))
    assert common(loaded(ROOT, written), old) == old


def test_the_previous_release_reads_what_it_knows_of_this_ones_settings(previous: Path, tmp_path: Path) -> None:
    """What it does not know, it refuses: then a rollback takes the settings that it last ran with."""
    written = tmp_path / "settings.toml"
    sample_for(previous, written)
    new = common(without_null(loaded(ROOT, written)), loaded(previous, written))
    written.write_text(toml(new))
    assert common(loaded(previous, written), new) == new
