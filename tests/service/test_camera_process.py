"""The camera as the daemon sees it, over a real child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.camera.children import Children
from edge.camera.lifecycle import STOP_TIMEOUT_S
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.camera.reports import decode
from edge.camera.settings import CameraSettings
from edge.camera.wire import Closed, Deframer, Dropped, EncodeSd, Opened, Ready, Start, Stop, encode
from edge.core.access_unit import AccessUnit, Quality
from edge.errors import CameraUnavailable
from tests.rigs.camera import GENEROUS_S, SMALL, Daemon, running


def exists(pid: int) -> bool:
    """Whether the process exists, also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie that another process has to reap does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_open_close_and_open_again_in_one_process() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            camera = daemon.camera
            pid = camera.pid
            for _ in range(2):
                earlier = len(daemon.units)
                camera.want(wanted=True)
                stream = await camera.opened()
                assert camera.opening is not None
                assert camera.opening.format == stream
                assert (stream.width, stream.height) == (320, 240)
                await daemon.more_units(5)
                assert daemon.units[earlier].keyframe
                camera.want(wanted=False)
                async with asyncio.timeout(GENEROUS_S):
                    await camera.closed()
                assert camera.state is CameraState.CLOSED
                count = len(daemon.units)
                await asyncio.sleep(0.2)
                assert len(daemon.units) == count
            assert (camera.pid, camera.restarts) == (pid, 0)
            assert daemon.states[-3:] == [CameraState.OPENING, CameraState.RUNNING, CameraState.CLOSED]
        assert pid is not None
        assert not exists(pid)

    asyncio.run(scenario())


def test_orders_reach_the_source() -> None:
    async def scenario() -> None:
        async with running(keyframe_interval_s=60) as daemon:
            daemon.camera.request_keyframe(Quality.HD)
            daemon.camera.want(wanted=True)
            await daemon.camera.opened()
            await daemon.more_units(5)
            assert sum(unit.keyframe for unit in daemon.units) == 1
            daemon.camera.set_bitrate(Quality.HD, 200_000)
            daemon.camera.request_keyframe(Quality.HD)
            await daemon.until(lambda: sum(unit.keyframe for unit in daemon.units) == 2)

    asyncio.run(scenario())


def test_a_killed_process_is_replaced_within_three_seconds() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            camera = daemon.camera
            camera.want(wanted=True)
            await camera.opened()
            await daemon.more_units()
            assert camera.pid is not None
            killed, count, started_s = camera.pid, len(daemon.units), time.monotonic()
            os.kill(killed, signal.SIGKILL)
            await daemon.until(lambda: camera.restarts == 1)
            await camera.opened()
            await daemon.more_units()
            assert time.monotonic() - started_s < 3
            assert any(unit.keyframe for unit in daemon.units[count:])
            assert camera.pid != killed
            assert camera.error is None
            assert not exists(killed)

    asyncio.run(scenario())


def test_opened_waits_through_a_crash() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            assert daemon.camera.pid is not None
            daemon.camera.want(wanted=True)
            waiting = asyncio.create_task(daemon.camera.opened())
            await asyncio.sleep(0)
            os.kill(daemon.camera.pid, signal.SIGKILL)
            assert (await waiting).encoder == "libx264"

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_and_replaced() -> None:
    async def scenario() -> None:
        async with running(stall_s=1) as daemon:
            camera = daemon.camera
            camera.want(wanted=True)
            await camera.opened()
            await daemon.more_units()
            assert camera.pid is not None
            hung = camera.pid
            os.kill(hung, signal.SIGSTOP)
            await daemon.until(lambda: camera.restarts == 1)
            assert CameraState.FAILED in daemon.states
            await camera.opened()
            await daemon.more_units()
            assert not exists(hung)

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_hung_process_does_not_outlive_the_part() -> None:
    async def scenario() -> int:
        async with running() as daemon:
            assert daemon.camera.pid is not None
            os.kill(daemon.camera.pid, signal.SIGSTOP)
            return daemon.camera.pid

    started_s = time.monotonic()
    pid = asyncio.run(scenario())
    assert time.monotonic() - started_s < STOP_TIMEOUT_S + 8
    assert not exists(pid)


def test_a_source_that_fails_names_the_cause_and_the_process_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(source="file", path=str(tmp_path / "none.mp4")) as daemon:
            camera = daemon.camera
            pid = camera.pid
            camera.want(wanted=True)
            for _ in range(2):
                with pytest.raises(CameraUnavailable, match="no such file"):
                    await camera.opened()
                assert camera.state is CameraState.FAILED
                assert camera.error is not None
            assert (camera.pid, camera.restarts, camera.opening) == (pid, 0, None)

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_missing_camera_is_reported_before_anyone_wants_it_and_found_when_it_is_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        film = tmp_path / "film.h264"
        async with running() as synthetic:
            synthetic.camera.want(wanted=True)
            await synthetic.more_units(20)
            recording = b"".join(unit.payload for unit in synthetic.units)
        async with running(source="file", path=str(film)) as daemon:
            camera = daemon.camera
            await daemon.until(lambda: camera.state is CameraState.FAILED)
            assert camera.error is not None
            assert "no such file" in camera.error.detail
            film.write_bytes(recording)
            await daemon.until(lambda: camera.state is CameraState.CLOSED)
            film.unlink()
            await daemon.until(lambda: camera.state is CameraState.FAILED)
            assert (daemon.units, camera.reopens, camera.restarts) == ([], 0, 0)
            # A viewer's failed try does not make it look available until the next probe.
            daemon.states.clear()
            camera.want(wanted=True)
            with pytest.raises(CameraUnavailable, match="no such file"):
                await camera.opened()
            camera.want(wanted=False)
            await asyncio.sleep(0.2)
            assert set(daemon.states) == {CameraState.FAILED}

    asyncio.run(scenario())


def test_opened_fails_while_no_one_wants_the_camera() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            with pytest.raises(CameraUnavailable, match="the camera is closing"):
                await daemon.camera.opened()

    asyncio.run(scenario())


@pytest.mark.slow
def test_opened_gives_up_on_a_process_that_never_answers() -> None:
    async def scenario() -> None:
        command = (sys.executable, "-c", "import time; time.sleep(60)")
        async with running(command, open_timeout_s=1) as daemon:
            daemon.camera.want(wanted=True)
            with pytest.raises(CameraUnavailable, match="did not open within 1 s"):
                await daemon.camera.opened()

    asyncio.run(scenario())


def test_a_process_that_cannot_be_started_names_the_cause() -> None:
    async def scenario() -> None:
        daemon = Daemon(("/nonexistent/camera",))
        task = asyncio.create_task(daemon.camera.run(asyncio.Event()))
        daemon.camera.want(wanted=True)
        with pytest.raises(CameraUnavailable, match="cannot be started"):
            await daemon.camera.opened()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (b"nonsense" * 9, "invalid message length of 1852796531 bytes (limit: 4194304)"),
        (struct.pack("!I", 16) + b'{"kind":"Fired"}', "invalid message of 16 bytes: KeyError: 'Fired'"),
        (encode(Stop()), "invalid message of 16 bytes: KeyError: 'Stop'"),
    ],
)
def test_a_protocol_error_is_logged_with_its_cause_and_the_process_is_replaced(
    message: bytes, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        code = f"import os, sys, time; os.write(int(sys.argv[-1]), {message!r}); time.sleep(60)"
        async with running((sys.executable, "-c", code)) as daemon:
            await daemon.until(lambda: daemon.camera.restarts >= 2)

    asyncio.run(scenario())
    assert any(f" error={cause}" in line for line in caplog.messages), caplog.messages


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (b"nonsense" * 9, "invalid message length"),
        (encode(Dropped(1)), "invalid message of 31 bytes: KeyError: 'Dropped'"),
    ],
)
def test_a_protocol_error_of_the_daemon_is_logged_by_the_camera_process(message: bytes, cause: str) -> None:
    ours, theirs = socket.socketpair()
    settings = CameraSettings.model_validate(SMALL).model_dump_json()
    command = [sys.executable, "-m", "edge.camera.child", "--fd", str(theirs.fileno()), "--settings", settings]
    with ours, theirs:
        ours.sendall(message)
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True, check=False)
    assert f"protocol error from the daemon error={cause}" in ended.stderr


async def test_messages_of_a_dropped_process_are_ignored() -> None:
    report = encode(Dropped(1))
    code = f"import os, sys, time\nwhile True: os.write(int(sys.argv[-1]), {report!r}); time.sleep(0.01)"
    messages: list[object] = []
    received = asyncio.Event()

    def receive(message: object) -> None:
        messages.append(message)
        received.set()

    children = Children(receive, lambda: None, lambda _: None, lambda: None)
    await children.spawn((sys.executable, "-c", code))
    async with asyncio.timeout(GENEROUS_S):
        await received.wait()
    children.drop()
    count = len(messages)
    await asyncio.sleep(0.2)
    assert len(messages) == count
    await children.reap()


def test_an_exception_in_a_callback_ends_the_part() -> None:
    async def scenario() -> None:
        def broken(_unit: AccessUnit) -> None:
            raise ZeroDivisionError

        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        camera = CameraProcess(CameraSettings.model_validate(SMALL), broken, lambda: None)
        camera.want(wanted=True)
        async with asyncio.timeout(GENEROUS_S):
            with pytest.raises(ZeroDivisionError):
                await camera.run(asyncio.Event())
        assert camera.pid is None

    asyncio.run(scenario())


@pytest.mark.parametrize("hung", [False, True])
def test_the_process_does_not_outlive_a_killed_daemon(hung: bool) -> None:
    code = """
import asyncio, sys
from edge.camera.process import CameraProcess
from edge.camera.reports import decode
from edge.camera.settings import CameraSettings

async def main():
    settings = {"hd": {"width": 320, "height": 240}, "sd": {"width": 160, "height": 120}, "open_timeout_s": 15}
    camera = CameraProcess(CameraSettings.model_validate(settings), lambda unit: None, lambda: None)
    task = asyncio.create_task(camera.run(asyncio.Event()))
    camera.want(wanted=True)
    await camera.opened()
    print(camera.pid, flush=True)
    await task

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        if hung:
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
        deadline_s = time.monotonic() + 2
        while alive(pid) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert not alive(pid)


@pytest.mark.slow
def test_a_slow_daemon_loses_pictures_and_continues_at_a_keyframe() -> None:
    ours, theirs = socket.socketpair()
    # A buffer that holds a fraction of a second, so that the send queue fills soon.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.settimeout(GENEROUS_S)
    settings = CameraSettings.model_validate({**SMALL, "keyframe_interval_s": 60}).model_dump(mode="json")
    command = [sys.executable, "-m", "edge.camera.child", "--fd", str(theirs.fileno()), "--settings"]
    child = subprocess.Popen([*command, json.dumps(settings)], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        deframer = Deframer()

        def received() -> list[object]:
            return [decode(body) for body in deframer.feed(ours.recv(65536))]

        messages: list[object] = []
        ours.sendall(encode(Start()))
        while not any(isinstance(message, AccessUnit) for message in messages):
            messages += received()
        assert isinstance(messages[0], Ready)
        assert isinstance(messages[1], Opened)

        time.sleep(3)
        while not any(isinstance(message, Dropped) for message in messages):
            messages += received()
        at = next(at for at, message in enumerate(messages) if isinstance(message, Dropped))
        while len(messages) < at + 5:
            messages += received()
        dropped, resumed = messages[at], messages[at + 1]
        assert isinstance(dropped, Dropped)
        assert dropped.count > 0
        assert isinstance(resumed, AccessUnit)
        assert resumed.keyframe

        ours.sendall(encode(Stop()))
        while not isinstance(messages[-1], Closed):
            messages += received()
        ours.close()
        assert child.wait(GENEROUS_S) == 0
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_low_frame_rate_is_not_a_stall() -> None:
    async def scenario() -> None:
        async with running(stall_s=0.5) as daemon:
            daemon.camera.want(wanted=True)
            await daemon.camera.opened()
            assert (await daemon.camera.set_controls({"fps": 1}))["fps"] == 1
            await daemon.more_units(4)
            assert daemon.camera.recovery[2] == 0
            # The same after the camera was opened again with that rate.
            daemon.camera.want(wanted=False)
            await daemon.camera.closed()
            daemon.camera.want(wanted=True)
            await daemon.camera.opened()
            await daemon.more_units(3)
            assert daemon.camera.recovery[2] == 0

    asyncio.run(scenario())


def test_a_request_fails_at_once_when_the_camera_process_ends() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            daemon.camera.want(wanted=True)
            await daemon.camera.opened()
            assert daemon.camera.pid is not None
            os.kill(daemon.camera.pid, signal.SIGSTOP)
            request = asyncio.create_task(daemon.camera.snapshot(None, 80))
            await asyncio.sleep(0.1)
            os.kill(daemon.camera.pid, signal.SIGKILL)
            with pytest.raises(CameraUnavailable, match="ended unexpectedly"):
                async with asyncio.timeout(2):
                    await request

    asyncio.run(scenario())


def test_sd_that_delivers_nothing_is_reported_and_hd_goes_on() -> None:
    async def scenario() -> None:
        async with running(stall_s=0.5) as daemon:
            daemon.camera.want(wanted=True)
            await daemon.camera.opened()
            daemon.camera.encode_sd(on=True)
            await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units))
            # As if its encoder had stopped by itself.
            daemon.camera._children.order(EncodeSd(on=False))
            await daemon.until(lambda: bool(daemon.sd_failures))
            assert daemon.sd_failures == ["SD delivered no picture for 0.5 s"]
            await daemon.more_units(10)
            assert daemon.camera.recovery[2] == 0

    asyncio.run(scenario())


def test_sd_is_encoded_for_a_trial_and_only_until_it_ends() -> None:
    async def scenario() -> None:
        async with running() as daemon:
            camera = daemon.camera
            camera.want(wanted=True)
            await camera.opened()
            async with asyncio.timeout(GENEROUS_S):
                trial = asyncio.create_task(camera.picture(sd=True))
                await daemon.more_units()
                camera.encode_sd(on=False)  # as the hub repeats while no viewer watches SD
                await trial
            assert any(unit.quality is Quality.SD for unit in daemon.units)
            await daemon.more_units(10)
            daemon.units.clear()
            await daemon.more_units(10)
            assert all(unit.quality is Quality.HD for unit in daemon.units)

    asyncio.run(scenario())


def test_a_trial_of_sd_without_a_picture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(stall_s=0.5) as daemon:
            # As if its encoder did nothing.
            order = daemon.camera._children.order
            monkeypatch.setattr(
                daemon.camera._children,
                "order",
                lambda each: None if isinstance(each, EncodeSd) else order(each),
            )
            daemon.camera.want(wanted=True)
            with pytest.raises(CameraUnavailable, match=r"SD delivered no picture for 0.5 s"):
                async with asyncio.timeout(GENEROUS_S):
                    await daemon.camera.picture(sd=True)
            await daemon.more_units(3)

    asyncio.run(scenario())


def test_a_source_without_sd_passes_a_trial_of_sd(tmp_path: Path) -> None:
    async def scenario() -> None:
        film = tmp_path / "film.h264"
        async with running() as synthetic:
            synthetic.camera.want(wanted=True)
            await synthetic.more_units(20)
            film.write_bytes(b"".join(unit.payload for unit in synthetic.units))
        async with running(source="file", path=str(film)) as daemon:
            daemon.camera.want(wanted=True)
            async with asyncio.timeout(GENEROUS_S):
                await daemon.camera.picture(sd=True)
            assert (daemon.sd_failures, daemon.camera.sd_error) == ([], None)

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_closed_camera_returns_the_memory_of_its_pictures() -> None:
    def memory_mb(pid: int) -> float:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def scenario() -> None:
        async with running(hd={}, sd={}) as daemon:
            camera = daemon.camera
            assert camera.pid is not None
            closed_mb = []
            for _ in range(3):
                camera.want(wanted=True)
                await camera.opened()
                camera.encode_sd(on=True)
                await daemon.more_units(60)
                camera.want(wanted=False)
                await camera.closed()
                closed_mb.append(memory_mb(camera.pid))
            assert closed_mb[2] < closed_mb[0] + 8, closed_mb

    asyncio.run(scenario())
