"""The shadow with the real daemon, mosquitto, and a service on AWS's topics."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest

from edge import daemon as daemon_module
from edge.camera.port import CameraState
from edge.camera.settings import CameraSettings
from edge.client import CameraClient
from edge.contract.codes import Code
from edge.contract.topics import Topics
from edge.core.access_unit import Quality
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from edge.settings import load_settings
from tests.rigs.aws_shadow import AwsShadow
from tests.rigs.camera import running
from tests.rigs.certificates import Authority
from tests.rigs.daemon import Daemon
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.scripted_broker import ScriptedBroker
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SMALL: dict[str, Any] = {"hd": {"width": 320, "height": 240, "fps": 15}, "sd": {"width": 160, "height": 120, "fps": 15}}
LESS = {"camera": {"hd": {"max_bps": 1_000_000}}}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def daemon(tmp_path: Path, broker: Mosquitto) -> Iterator[Daemon]:
    made = a_daemon(tmp_path, broker)
    yield made
    made.end()


def a_daemon(directory: Path, broker: Mosquitto, **camera: Any) -> Daemon:
    mqtt = broker.settings(tls=False, reconnect_cap_s=1, shadow="aws")
    return Daemon(directory, mqtt, camera={**SMALL, **camera}, log={"level": "warning"})


def settings(broker: Mosquitto) -> MqttSettings:
    return MqttSettings(**broker.settings(tls=False))


@pytest.mark.slow
async def test_desired_settings_are_applied_while_viewers_are_connected(broker: Mosquitto, daemon: Daemon) -> None:
    async with AwsShadow(settings(broker)).serving() as shadow, CameraClient.connect(settings(broker), "bff") as client:
        await asyncio.to_thread(daemon.start)
        # There is no shadow yet: the device's report creates it.
        await shadow.until(lambda: shadow.reported.get("sessions") == {"max_viewers": 5})
        camera = client.camera("cam-1")
        await camera.online()
        events = camera.events()
        viewers = [Viewer(), Viewer()]
        try:
            for viewer in viewers:
                await viewer.watch(camera)
                await viewer.wait_for_pictures()
            pids = daemon.children()
            version = await shadow.desire({**LESS, "sessions": {"max_viewers": 1}, "log": {"level": "info"}})
            await shadow.until(lambda: shadow.outcome == ("applied", version))
            assert shadow.reported["camera"]["hd"] == {"min_bps": 200_000, "max_bps": 1_000_000}
            # Connected viewers stay connected; a third one is refused.
            for viewer in viewers:
                await viewer.wait_for_pictures()
            status = await camera.status()
            assert (status.viewers.connected, status.viewers.limit) == (2, 1)
            assert daemon.children() == pids
            late = Viewer()
            with pytest.raises(Rejected) as caught:
                await late.watch(camera)
            await late.close()
            assert caught.value.code is Code.BUSY
            async with asyncio.timeout(10):
                assert (await anext(event async for event in events if "settings" in event.type)).type == (
                    "settings.applied"
                )
            # The file says "warning".
            assert "INFO edge.tuning.service: settings applied" in daemon.log()
            # Removed settings have the values of the file again.
            version = await shadow.desire({"sessions": None, "log": {"level": None}})
            await shadow.until(lambda: shadow.outcome == ("applied", version))
            assert shadow.reported["sessions"] == {"max_viewers": 5}
            assert shadow.reported["camera"]["hd"]["max_bps"] == 1_000_000
            for viewer in viewers:
                await viewer.wait_for_pictures()
        finally:
            for viewer in viewers:
                await viewer.close()


async def test_one_fault_refuses_the_whole_document_and_causes_no_loop(broker: Mosquitto, daemon: Daemon) -> None:
    async with AwsShadow(settings(broker)).serving() as shadow:
        version = await shadow.desire({**LESS, "sessions": {"max_viewers": 0}, "colour": "red"})
        await asyncio.to_thread(daemon.start)
        await shadow.until(lambda: shadow.outcome == ("refused", version))
        assert len(shadow.reported["outcome"]["reasons"]) == 2
        assert shadow.reported["camera"]["hd"]["max_bps"] == 2_000_000
        status = daemon.status() or {}
        refusal = status["last_refusal"]
        assert (refusal["code"], refusal["type"]) == ("bad_message", "settings")
        assert "colour: unknown key" in refusal["message"]
        assert status["last_error"] is None
        # AWS repeats the difference after the report; the device does not answer.
        settled = len(shadow.reports)
        assert settled <= 2
        version = await shadow.desire({"sessions": {"max_viewers": 3}, "colour": None})
        await shadow.until(lambda: shadow.outcome == ("applied", version))
        # One report for the trial, one for its end.
        assert len(shadow.reports) <= settled + 2
        assert shadow.requests.count("get") <= 6


async def test_a_refused_report_is_retried(broker: Mosquitto, daemon: Daemon) -> None:
    async with AwsShadow(settings(broker)).serving() as shadow:
        shadow.refusals = [(429, "Too many requests"), (404, "No shadow exists"), (409, "Version conflict")]
        await asyncio.to_thread(daemon.start)
        await shadow.until(lambda: shadow.reported)
        assert shadow.requests == ["get", "get", "update", "update"]
        assert "409" in (daemon.status() or {})["last_error"]["message"]


@pytest.mark.slow
async def test_settings_survive_a_restart_without_a_broker_and_later_ones_are_found(
    broker: Mosquitto, daemon: Daemon
) -> None:
    async with AwsShadow(settings(broker)).serving() as shadow:
        await asyncio.to_thread(daemon.start)
        version = await shadow.desire({**LESS, "sessions": {"max_viewers": 2}})
        await shadow.until(lambda: shadow.outcome == ("applied", version))
        await asyncio.to_thread(daemon.stop)
        latest = await shadow.desire({"sessions": {"max_viewers": 4}})
    broker.stop()
    await asyncio.to_thread(daemon.start)
    status = await asyncio.to_thread(daemon.status)
    assert status is not None
    assert status["viewers"]["limit"] == 2
    await asyncio.to_thread(daemon.stop)
    broker.start()
    again = AwsShadow(settings(broker))
    again.state, again.version = shadow.state, shadow.version
    async with again.serving():
        await asyncio.to_thread(daemon.start)
        await again.until(lambda: again.outcome == ("applied", latest))
        assert again.reported["sessions"] == {"max_viewers": 4}


async def test_a_deleted_shadow_with_restarted_versions_is_followed(broker: Mosquitto, daemon: Daemon) -> None:
    async with AwsShadow(settings(broker)).serving() as shadow:
        await asyncio.to_thread(daemon.start)
        for limit in (2, 3, 4):
            latest = await shadow.desire({"sessions": {"max_viewers": limit}})
        await shadow.until(lambda: shadow.outcome == ("applied", latest))
        shadow.delete()
        gets = shadow.requests.count("get")
        version = await shadow.desire({"sessions": {"max_viewers": 1}})
        assert version == 1
        await shadow.until(lambda: shadow.outcome == ("applied", 1))
        assert shadow.reported["sessions"] == {"max_viewers": 1}
        assert shadow.requests.count("get") <= gets + 2


@pytest.mark.slow
async def test_the_shadow_works_with_awss_client(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    broker = Mosquitto(tmp_path, authority=authority)
    broker.start()

    def mqtt(name: str, **more: Any) -> dict[str, Any]:
        cert_file, key_file = map(str, authority.issue(name))
        return broker.settings(ca_file=str(authority.ca_file), cert_file=cert_file, key_file=key_file, **more)

    daemon = Daemon(tmp_path, mqtt("cam-1", client="aws", shadow="aws"), camera=SMALL)
    try:
        async with AwsShadow(MqttSettings(**mqtt("aws"))).serving() as shadow:
            await asyncio.to_thread(daemon.start)
            await shadow.until(lambda: shadow.reported)
            version = await shadow.desire(LESS)
            await shadow.until(lambda: shadow.outcome == ("applied", version))
    finally:
        daemon.end()
        broker.stop()


@asynccontextmanager
async def in_this_process(daemon: Daemon, trial_s: float) -> AsyncIterator[daemon_module.Daemon]:
    """Run the daemon in this process, which allows a shorter trial."""
    daemon.directory.joinpath("state").mkdir()
    level = logging.getLogger().level
    made = daemon_module.Daemon(load_settings(daemon.config), trial_s=trial_s)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task
        logging.getLogger().setLevel(level)


async def recording(path: Path) -> None:
    """A second of real H.264."""
    async with running(None, **SMALL) as drawn:
        drawn.camera.want(wanted=True)
        await drawn.more_units(20)
        path.write_bytes(b"".join(unit.payload for unit in drawn.units if unit.quality is Quality.HD))


@pytest.mark.slow
async def test_settings_with_which_the_camera_does_not_open_are_rolled_back(tmp_path: Path, broker: Mosquitto) -> None:
    """The recording disappears at the wrong moment, which looks like an encoder that refuses a bitrate."""
    film = tmp_path / "film.h264"
    await recording(film)
    failing = a_daemon(tmp_path, broker, source="file", path=str(film), open_timeout_s=1)
    async with AwsShadow(settings(broker)).serving() as shadow, in_this_process(failing, trial_s=2) as daemon:
        # There are no viewers: the trial opens the camera.
        version = await shadow.desire(LESS)
        await shadow.until(lambda: shadow.outcome == ("applied", version))
        film.rename(tmp_path / "away.h264")
        version = await shadow.desire({"camera": {"hd": {"max_bps": 1_500_000}}, "sessions": {"max_viewers": 1}})
        await shadow.until(lambda: shadow.outcome == ("trying", version))
        assert shadow.reported["sessions"] == {"max_viewers": 1}
        await shadow.until(lambda: shadow.outcome == ("rolled_back", version))
        assert shadow.reported["camera"]["hd"]["max_bps"] == 1_000_000
        assert shadow.reported["sessions"] == {"max_viewers": 5}
        assert "film.h264" in shadow.reported["outcome"]["reasons"][0]
        # It is not tried again until it is desired again, although AWS reports a difference.
        (tmp_path / "away.h264").rename(film)
        requests = len(shadow.reports)
        version = await shadow.desire({"sessions": None, **LESS})
        await shadow.until(lambda: shadow.outcome == ("applied", version))
        assert len(shadow.reports) == requests + 1
        status = daemon._status_report.status()
        assert status.last_error is not None
        assert status.last_error.code == Code.CAMERA_UNAVAILABLE


@pytest.mark.slow
async def test_a_daemon_killed_during_a_trial_starts_with_the_previous_settings(
    tmp_path: Path, broker: Mosquitto
) -> None:
    daemon = a_daemon(tmp_path, broker, source="file", path=str(tmp_path / "none.h264"))
    try:
        async with AwsShadow(settings(broker)).serving() as shadow:
            await asyncio.to_thread(daemon.start)
            version = await shadow.desire(LESS)
            await shadow.until(lambda: shadow.outcome == ("trying", version))
            assert daemon.process is not None
            daemon.process.kill()
            await asyncio.to_thread(daemon.process.wait)
            await asyncio.to_thread(daemon.start)
            await shadow.until(lambda: shadow.outcome == ("rolled_back", version))
            assert shadow.reported["camera"]["hd"]["max_bps"] == 2_000_000
            assert "restarted" in shadow.reported["outcome"]["reasons"][0]
    finally:
        daemon.end()


@pytest.mark.slow
async def test_other_brokers_carry_the_same_documents_on_the_projects_topics(tmp_path: Path, broker: Mosquitto) -> None:
    daemon = Daemon(tmp_path, broker.settings(tls=False), camera=SMALL)
    topics = Topics("cam-1").shadow(at_aws=False)
    received: asyncio.Queue[Message] = asyncio.Queue()
    linked = asyncio.Event()
    backend = PahoBroker(settings(broker), "bff", (topics.update,), None)
    backend.listen(received.put_nowait, lambda up: linked.set() if up else None)

    async def reported(state: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                report: dict[str, Any] = json.loads((await received.get()).payload)["state"]["reported"]
                if (report["outcome"] or {}).get("state") == state:
                    return report

    async def desire(version: int, **desired: Any) -> None:
        document = {"state": desired, "version": version}
        await backend.publish(Message(topics.delta, json.dumps(document).encode(), retain=True))

    link = asyncio.create_task(backend.run(asyncio.Event()))
    try:
        async with asyncio.timeout(10):
            await linked.wait()
        # The device is offline: it will find the retained document.
        await desire(1, sessions={"max_viewers": 2})
        await asyncio.to_thread(daemon.start)
        assert (await reported("applied"))["sessions"] == {"max_viewers": 2}
        await desire(2, sessions={"max_viewers": 2}, auth={"mode": "off"})
        assert (await reported("refused"))["outcome"]["reasons"] == ["auth: unknown key"]
        await desire(3, **LESS)
        report = await reported("applied")
        assert (report["sessions"], report["camera"]["hd"]["max_bps"]) == ({"max_viewers": 5}, 1_000_000)
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        daemon.end()


@pytest.mark.parametrize("fault", ["refuse", "hang up"])
async def test_without_permission_for_the_shadow_the_device_is_online_without_it(
    tmp_path: Path, fault: Literal["refuse", "hang up"]
) -> None:
    async with ScriptedBroker() as broker:
        broker.shadow_fault = fault
        mqtt = {"host": "127.0.0.1", "port": broker.port, "tls": False, "version": "3.1.1", "shadow": "aws"}
        async with in_this_process(Daemon(tmp_path, mqtt, camera=SMALL), trial_s=2) as daemon:
            async with asyncio.timeout(20):
                while not daemon._broker.connected:
                    await asyncio.sleep(0.02)
            # Later than any shadow message about the link or a change.
            await daemon._broker.publish(Message("first", b"x"))
            daemon._tuning_changed()
            await daemon._broker.publish(Message("second", b"x"))
            await daemon._broker.publish(Message("last", b"x"))
            status = daemon._status_report.status().broker
            links = broker.links
    assert status is not None
    assert status.connected
    assert "shadow" in (status.error or "")
    assert {"first", "last", "edge/v1/cam-1/status"} <= set(broker.published)
    assert not [topic for topic in broker.published if "shadow" in topic]
    assert links == (1 if fault == "refuse" else 3)


async def test_a_disabled_shadow_sends_and_receives_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    daemon = Daemon(tmp_path, broker.settings(tls=False, shadow="off"), camera=SMALL)
    topics = Topics("cam-1").shadow(at_aws=False)
    received: list[Message] = []
    backend = PahoBroker(settings(broker), "bff", (topics.update,), None)
    linked = asyncio.Event()
    backend.listen(received.append, lambda up: linked.set() if up else None)
    link = asyncio.create_task(backend.run(asyncio.Event()))
    try:
        async with asyncio.timeout(10):
            await linked.wait()
        await backend.publish(Message(topics.delta, b'{"state": {"sessions": {"max_viewers": 1}}}', retain=True))
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(settings(broker), "watcher") as client:
            status = await client.camera("cam-1").status()
        assert status.viewers.limit == 5
        assert received == []
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        daemon.end()


async def test_changed_bitrate_ranges_reopen_the_camera_in_its_process() -> None:
    async with running(**SMALL) as process:
        camera = process.camera
        camera.want(wanted=True)
        camera.encode_sd(on=True)
        camera.set_bitrate(Quality.HD, 1_500_000)
        before = await camera.opened()
        await camera.picture(sd=False)
        pid = camera.pid
        wider = {**SMALL, "hd": {**SMALL["hd"], "max_bps": 12_000_000, "min_bps": 1_600_000}}
        camera.apply_settings(CameraSettings.model_validate({**wider, "open_timeout_s": 15}))
        async with asyncio.timeout(20):
            await camera.picture(sd=False)
        after = camera.opening
        assert after is not None
        # The encoder was recreated: a higher bitrate needs a higher level.
        assert int(after.format.profile_level_id[4:], 16) > int(before.profile_level_id[4:], 16)
        assert camera.bitrate_range(Quality.HD) == (1_600_000, 12_000_000)
        assert (camera.pid, camera.restarts, camera.reopens, camera.error) == (pid, 0, 0, None)
        assert CameraState.FAILED not in process.states
        sd = sum(unit.quality is Quality.SD for unit in process.units)
        await process.until(lambda: sum(unit.quality is Quality.SD for unit in process.units) > sd)
        # After a kill it restarts with the same settings.
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGKILL)
        await process.until(lambda: camera.restarts == 1 and camera.opening is not None)
        assert camera.opening is not None
        assert camera.opening.format == after.format
