"""The unit on a running systemd, 252 and 257: supervised, sandboxed, and restarted after faults."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.conftest import SETTINGS, install
from tests.rigs.machine import Machine
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from edge.client import RemoteCamera
    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVICE = "edge-streamer.service"
WATCHDOG_S = 5
# Loaded into the service's Python: SIGUSR1 blocks its main thread, and so its event loop.
HANG = "import signal; signal.signal(signal.SIGUSR1, lambda *_: __import__('time').sleep(1e6))"
# Prints, as JSON, what a program in the service's sandbox may do.
SANDBOX = """
import ctypes, json, os, pathlib, socket, subprocess
def tried(action):
    try:
        action()
        return "done"
    except OSError as exc:
        return exc.strerror
class Timex(ctypes.Structure):
    _fields_ = [("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 256)]
libc = ctypes.CDLL(None, use_errno=True)
def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
print(json.dumps({
    "asks whether the clock is set": subprocess.run(
        ["timedatectl", "show", "--property=NTPSynchronized", "--value"], capture_output=True, text=True
    ).stdout.strip() in ("yes", "no"),
    "sets the clock": tried(lambda: called(libc.adjtimex(ctypes.byref(Timex(1))))),
    "camera's node": tried(lambda: os.close(os.open("/dev/vchiq", os.O_RDWR))),
    "another node": tried(lambda: os.close(os.open("/dev/fuse", os.O_RDWR))),
    "its key": tried(lambda: pathlib.Path("/etc/edge-streamer/credentials/device.key").read_text()),
    "writes /etc": tried(lambda: pathlib.Path("/etc/edge-streamer/x").write_text("x")),
    "writes /opt": tried(lambda: pathlib.Path("/opt/edge-streamer/x").write_text("x")),
    "writes its state": tried(lambda: pathlib.Path("/var/lib/edge-streamer/x").write_text("x")),
    "raw socket": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "a namespace of its own": tried(lambda: called(libc.unshare(0x10000000))),
    "reads /home": tried(lambda: os.listdir("/home")),
}))
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, network: Network, site: Site, bundle: Path) -> Iterator[Machine]:
    suite = request.param
    with Machine(network, suite, f"unit-{suite}", packages=True) as machine:
        install(machine, bundle, site, suite)
        yield machine


@pytest.fixture(autouse=True)
def _runs(machine: Machine) -> Iterator[None]:
    """Restart the service before each test, and reset its restart counter."""
    machine.run("systemctl", "reset-failed", SERVICE)
    machine.run("systemctl", "restart", SERVICE)
    yield
    journal = machine.journal(SERVICE, "-o", "cat")
    assert "Traceback" not in journal, journal[-4000:]


def pid(machine: Machine) -> int:
    return int(machine.show(SERVICE, "MainPID"))


def status_of(machine: Machine, path: str = "/api/v1/status", method: str = "GET") -> dict[str, Any]:
    script = f"""import json, urllib.request
request = urllib.request.Request("http://127.0.0.1:8081{path}", method="{method}")
print(json.dumps(json.load(urllib.request.urlopen(request, timeout=20))))"""
    fields: dict[str, Any] = json.loads(machine.run("python3", "-c", script))
    return fields


def processes(machine: Machine) -> set[int]:
    """All processes of the service's user."""
    found = machine.try_run("pgrep", "-u", "edge-streamer").stdout.split()
    return {int(one) for one in found}


@asynccontextmanager
async def watched(site: Site, device: str) -> AsyncIterator[tuple[RemoteCamera, Viewer]]:
    """Connect a viewer, and wait until it decodes pictures of the device."""
    async with site.client() as client:
        camera = client.camera(device)
        async with asyncio.timeout(30):
            await camera.online()
        viewer = Viewer()
        try:
            await viewer.watch(camera, token=site.token(device))
            await viewer.wait_for_pictures()
            yield camera, viewer
        finally:
            await viewer.close()


def test_the_unit_verifies_and_is_confined(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", SERVICE, "edge-streamer-switch.service") == ""
    rows = json.loads(machine.run("systemd-analyze", "security", "--json=short", SERVICE))
    assert rows
    score = machine.run("systemd-analyze", "security", "--no-pager", SERVICE).splitlines()[-1]
    assert float(score.split(": ")[1].split()[0]) <= 1.5, score
    # A drop-in is installed only if this systemd has its settings.
    drop_ins = machine.show(SERVICE, "DropInPaths")
    newer = not machine.run("systemctl", "--version").startswith("systemd 252")
    assert ("254-restart-steps" in drop_ins, "257-private-tmp" in drop_ins) == (newer, newer)


def test_systemd_gets_ready_and_a_status_line(machine: Machine) -> None:
    assert machine.show(SERVICE, "ActiveState") == "active"
    machine.wait(lambda: "broker connected" in machine.show(SERVICE, "StatusText"), what="a status line")
    assert machine.show(SERVICE, "StatusText").startswith("streaming enabled, camera ")


def test_sandbox_allows_only_what_the_daemon_uses(machine: Machine) -> None:
    """A program that runs instead of the daemon, in the sandbox of the unit."""
    # A camera node of a Raspberry Pi, owned by the group video. Here it is the console memory of this kernel.
    machine.run("mknod", "-m", "660", "/dev/vchiq", "c", "7", "0")
    machine.run("chgrp", "video", "/dev/vchiq")
    machine.run("mknod", "-m", "666", "/dev/fuse", "c", "10", "229")
    machine.write("/opt/sandbox.py", SANDBOX)
    drop_in = "[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/usr/bin/python3 /opt/sandbox.py\n"
    machine.write(f"/etc/systemd/system/{SERVICE}.d/sandbox.conf", drop_in)
    machine.shell(f"systemctl stop {SERVICE}; systemctl daemon-reload; systemctl start {SERVICE}")
    said = machine.run("journalctl", "-u", SERVICE, "-o", "cat", "--no-pager", "-t", "python3").splitlines()[-1]
    machine.shell(f"rm /etc/systemd/system/{SERVICE}.d/sandbox.conf; systemctl daemon-reload; rm /dev/vchiq /dev/fuse")
    found = json.loads(said)
    assert found == {
        "asks whether the clock is set": True,
        "sets the clock": "Operation not permitted",
        "camera's node": "done",
        "another node": "Operation not permitted",
        "its key": "Permission denied",
        "writes /etc": "Permission denied",
        "writes /opt": "Read-only file system",
        "writes its state": "done",
        "raw socket": "Address family not supported by protocol",
        "a namespace of its own": "Operation not permitted",
        "reads /home": "Permission denied",
    }


def test_a_hung_main_loop_is_killed_and_restarted_within_ten_seconds(machine: Machine) -> None:
    release = machine.run("readlink", "-f", "/opt/edge-streamer/current").strip()
    packages = machine.run("sh", "-c", f"echo {release}/lib/python3.*/site-packages").strip()
    machine.write(f"{packages}/hang.pth", HANG)
    machine.run("systemctl", "restart", SERVICE)
    before, old = pid(machine), processes(machine)
    hung_s = time.monotonic()
    machine.run("kill", "-USR1", str(before))
    machine.wait(lambda: pid(machine) not in (0, before) and machine.show(SERVICE, "SubState") == "running", 30)
    back_s = time.monotonic() - hung_s
    machine.run("rm", f"{packages}/hang.pth")
    assert back_s < 10, back_s
    journal = machine.journal(SERVICE, "-o", "cat")
    assert "Watchdog timeout" in journal
    assert "Current thread" in journal  # where it hung
    assert not processes(machine) & old


def test_a_crash_restarts_it_and_no_process_is_left(machine: Machine) -> None:
    before, old = pid(machine), processes(machine)
    assert len(old) == 2  # with the camera's
    machine.run("kill", "-KILL", str(before))
    machine.wait(lambda: machine.show(SERVICE, "NRestarts") == "1" and machine.show(SERVICE, "SubState") == "running")
    machine.wait(lambda: not processes(machine) & old, what="the old processes' end")
    machine.run("systemctl", "stop", SERVICE)
    assert processes(machine) == set()


def test_idle_stopped_brokerless_and_cameraless_devices_are_not_restarted(machine: Machine, site: Site) -> None:
    before = pid(machine)
    status_of(machine, "/api/v1/stream/stop", "POST")
    site.broker.stop()
    try:
        time.sleep(2.5 * WATCHDOG_S)
        assert "no broker" in machine.show(SERVICE, "StatusText")
    finally:
        site.broker.start()
    status_of(machine, "/api/v1/stream/start", "POST")
    time.sleep(2 * WATCHDOG_S)
    assert (pid(machine), machine.show(SERVICE, "NRestarts")) == (before, "0")
    # Without picamera2, as with a camera that is not connected.
    machine.write(
        f"/etc/systemd/system/{SERVICE}.d/camera.conf", "[Service]\nEnvironment=EDGE__CAMERA__SOURCE=picamera2\n"
    )
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    before = pid(machine)
    script = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/api/v1/snapshot.jpg', timeout=30)"
    assert "503" in machine.try_run("python3", "-c", script).stdout
    time.sleep(2.5 * WATCHDOG_S)
    machine.shell(f"rm /etc/systemd/system/{SERVICE}.d/camera.conf; systemctl daemon-reload")
    assert (pid(machine), machine.show(SERVICE, "NRestarts")) == (before, "0")


async def test_stop_closes_sessions_within_three_seconds(machine: Machine, site: Site) -> None:
    device = machine.suite
    async with watched(site, device) as (camera, viewer):
        events = camera.events()
        begun_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(machine.run, "systemctl", "stop", SERVICE))
        closed = None
        async with asyncio.timeout(10):
            async for event in events:
                if event.type == "session.closed":
                    closed = event
                    break
        await stopping
        assert time.monotonic() - begun_s < 3
        assert closed is not None
        async with asyncio.timeout(5):
            while camera.last_status is None or camera.last_status.online:
                await asyncio.sleep(0.05)
        assert viewer.session
    assert machine.show(SERVICE, "Result") == "success"


async def test_a_journal_line_names_its_session(machine: Machine, site: Site) -> None:
    async with watched(site, machine.suite) as (_, viewer):
        session = viewer.session
    sessions = {row.get("EDGE_SESSION") for row in machine.journal_rows(SERVICE)}
    assert session in sessions


def test_broken_settings_fail_once_with_all_faults(machine: Machine) -> None:
    good = machine.read(SETTINGS)
    before = machine.run("date", "+%s").strip()
    machine.shell(f"sed -i 's/synthetic/none/; s/^id = .*/id = \"a b\"/' {SETTINGS}")
    machine.try_run("systemctl", "restart", SERVICE)
    machine.wait(lambda: machine.show(SERVICE, "ActiveState") == "failed")
    assert (machine.show(SERVICE, "ExecMainStatus"), machine.show(SERVICE, "NRestarts")) == ("78", "0")
    journal = machine.journal(SERVICE, "-o", "cat", f"--since=@{before}")
    assert "device.id: " in journal
    assert "camera.source: " in journal
    machine.write(SETTINGS, good, 0o640)
    machine.run("chgrp", "edge-streamer", SETTINGS)


async def test_nothing_outside_its_directories_is_written(machine: Machine, site: Site) -> None:
    machine.run("sh", "-c", "sleep 1.1; touch /root/mark; sleep 1.1")
    async with watched(site, machine.suite):
        status_of(machine, "/api/v1/stream/stop", "POST")
        status_of(machine, "/api/v1/stream/start", "POST")
    machine.run("systemctl", "restart", SERVICE)
    found = machine.run("sh", "-c", "find / -xdev -newer /root/mark -type f -not -path '/proc/*' -not -path '/run/*'")
    strangers = [
        path
        for path in found.splitlines()
        if not path.startswith(("/var/lib/edge-streamer/", "/var/log/", "/tmp/words"))
    ]
    assert strangers == []


def test_a_power_cut_keeps_the_state(machine: Machine) -> None:
    status_of(machine, "/api/v1/stream/stop", "POST")
    machine.cut()
    machine.boot()
    machine.wait(lambda: machine.show(SERVICE, "SubState") == "running", 60)
    assert status_of(machine)["stream"]["wanted"] == "stopped"
    assert not (machine.root / "opt/edge-streamer/switch.json").exists()
    status_of(machine, "/api/v1/stream/start", "POST")


async def test_a_read_only_root_does_not_stop_the_video(machine: Machine, site: Site) -> None:
    """The kernel mounted the SD card read-only at boot, so systemd cannot create the state directory."""
    machine.cut()
    machine.boot(read_only=True)
    try:
        machine.wait(lambda: machine.show(SERVICE, "SubState") == "running", 60)
        async with watched(site, machine.suite) as (_, viewer):
            await viewer.wait_for_pictures()
            # Commands that need the disk take effect, and are answered with `not_kept`.
            for command in ("stop", "start"):
                url = f"http://127.0.0.1:8081/api/v1/stream/{command}"
                script = f"""import urllib.error, urllib.request
try:
    urllib.request.urlopen(urllib.request.Request("{url}", method="POST"), timeout=20)
except urllib.error.HTTPError as exc:
    print(exc.code, exc.read().decode())"""
                assert "507" in (answer := machine.run("python3", "-c", script)), answer
                assert "not_kept" in answer
        async with watched(site, machine.suite):
            pass
        assert machine.show(SERVICE, "NRestarts") == "0"
    finally:
        machine.cut()
        machine.boot()
