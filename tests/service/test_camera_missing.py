"""A device without its camera: it runs, reports the fault, and streams once the camera is connected."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from edge.client import CameraClient
from edge.contract.codes import Code
from edge.errors import EdgeError
from edge.mqtt.settings import MqttSettings
from tests.rigs.camera import running
from tests.rigs.daemon import ROOT, Daemon, free_port
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from pathlib import Path


def readyz(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.api_port}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


async def recording() -> bytes:
    async with running() as synthetic:
        synthetic.camera.want(wanted=True)
        await synthetic.more_units(20)
        return b"".join(unit.payload for unit in synthetic.units)


@pytest.mark.parametrize("release", ["0.1.0", "this"])
def test_an_update_succeeds_without_a_camera_if_none_worked_before(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release 0.1.0 reports ready without a camera, which this one does not."""
    monkeypatch.syspath_prepend(ROOT / "deploy" / "bundle")
    from edge_release import daemon as gate

    code = ROOT
    if release == "0.1.0":
        code = tmp_path / "previous"
        with zipfile.ZipFile(ROOT / "tests" / "releases" / "edge_streamer-0.1.0-py3-none-any.whl") as archive:
            archive.extractall(code)
    mqtt = {"host": "127.0.0.1", "port": free_port(), "tls": False}
    daemon = Daemon(tmp_path, mqtt, code=code, camera={"source": "file", "path": str(tmp_path / "none.h264")})
    monkeypatch.setattr(gate, "SETTINGS", daemon.config)
    try:
        daemon.start()
        daemon.wait_for_status(lambda status: status["camera"]["source"] == "file")
        assert (readyz(daemon)[0] == 200) is (release == "0.1.0")
        assert gate.probe() == {"ready": False, "frame": False, "broker": False}
    finally:
        daemon.end()


@pytest.mark.slow
async def test_a_device_without_a_camera_runs_is_not_ready_and_becomes_ready_by_itself(tmp_path: Path) -> None:
    film = tmp_path / "camera.h264"
    pictures = await recording()
    broker = Mosquitto(tmp_path)
    broker.start()
    mqtt = broker.settings(tls=False)
    daemon = Daemon(tmp_path, mqtt, camera={"source": "file", "path": str(film), "idle_stop_s": 0})
    try:
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.wait_for_status, lambda s: s["camera"]["source"] == "file")
        code, answer = await asyncio.to_thread(readyz, daemon)
        assert (code, answer["status"], answer["trouble"]) == (503, "not ready", f"{film}: no such file")
        async with CameraClient.connect(MqttSettings(**mqtt), "bff-1") as client:
            camera = client.camera("cam-1")
            await camera.online()
            viewer = Viewer()
            with pytest.raises(EdgeError) as raised:
                await viewer.watch(camera)
            await viewer.close()
            assert (raised.value.code, raised.value.message) == (
                Code.CAMERA_UNAVAILABLE,
                "The camera is not connected",
            )
            assert (await asyncio.to_thread(readyz, daemon))[0] == 503

            film.write_bytes(pictures)
            await asyncio.to_thread(daemon.wait, lambda: readyz(daemon)[0] == 200, 20)
            now = daemon.status()
            assert now is not None
            assert (now["camera"]["state"], now["camera"]["error"], now["camera"]["restarts"]) == ("closed", None, 0)
            assert now["counters"].get("access_units", 0) == 0, "the camera was not opened to look for it"
            viewer = Viewer()
            await viewer.watch(camera)
            await viewer.wait_for_pictures()
            await viewer.close()
        assert f"error='{film}: no such file'" in daemon.log()
        assert await asyncio.to_thread(daemon.stop) == 0
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
