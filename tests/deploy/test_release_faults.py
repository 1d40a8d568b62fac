"""edge-release in a hostile or unlucky world: broken bundles, full disks, killed programs, two at once."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.conftest import SETTINGS, edge_release, install, release_of, unpack
from tests.deploy.test_release import OPT, SERVICE, changed_bundle, current, opt, wait_for_broker
from tests.rigs.daemon import toml
from tests.rigs.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEVICE = "cam-1"
DISK_MB = 1600


@pytest.fixture(scope="module")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_bundle(bundle, tmp_path_factory.mktemp("newer"), "2.0.0-newer", lambda _: None)


@pytest.fixture(scope="module")
def machine(network: Network, site: Site, bundle: Path) -> Iterator[Machine]:
    """Installed by a root whose umask hides its files from others, with a /tmp that has no space."""
    with Machine(network, "trixie", "faults", packages=True, disk_mb=DISK_MB) as machine:
        machine.shell("mount -t tmpfs -o size=4k tmpfs /tmp; echo full >/tmp/full")
        where = unpack(bundle, machine)
        machine.shell(f"umask 077; {where}/edge-release install {where}")
        machine.shell("rm -r /root/bundle; umount /tmp")
        site.provision(machine, DEVICE)
        machine.write("/root/settings.toml", toml(site.settings(DEVICE)))
        edge_release(machine, "apply", "--release", release_of(bundle), "--settings", "/root/settings.toml")
        wait_for_broker(machine)
        yield machine


@pytest.fixture
def stored(machine: Machine, newer: Path) -> Iterator[str]:
    """The newer bundle on the machine, not installed."""
    wait_for_broker(machine)
    path = f"/root/{newer.name}"
    machine.write(path, newer.read_bytes())
    yield path
    machine.run("rm", "-f", path)
    machine.run("rm", "-rf", f"{OPT}/releases/{release_of(newer)}")


def refused(machine: Machine, *arguments: str) -> str:
    """Run a command that must be refused in one line, with nothing left behind; the line."""
    before = machine.run("ls", f"{OPT}/releases"), current(machine), machine.show(SERVICE, "MainPID")
    result = edge_release(machine, *arguments, status=1)
    assert result["changed"] is False
    assert "Traceback" not in result["words"]
    after = machine.run("ls", f"{OPT}/releases"), current(machine), machine.show(SERVICE, "MainPID")
    assert after == before
    assert machine.run("sh", "-c", "ls -d /var/tmp/edge-* 2>/dev/null || true") == ""
    return str(result["reason"])


def archive_of(directory: Path, *members: tarfile.TarInfo) -> Path:
    packed = directory / "bundle.tar"
    with tarfile.open(packed, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return packed


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_an_archive_that_was_cut_is_refused(machine: Machine, newer: Path) -> None:
    whole = newer.read_bytes()
    for part in (0, 100, 512, 10_000, len(whole) // 3, len(whole) // 2, len(whole) - 200_000):
        machine.write("/root/part.tar", whole[:part])
        assert "bundle" in refused(machine, "install", "/root/part.tar")
    machine.run("rm", "/root/part.tar")
    assert "No such file" in refused(machine, "install", "/root/part.tar")


@pytest.mark.parametrize(
    "bad",
    [
        member("top/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("top/hard", tarfile.LNKTYPE, "../../etc/passwd"),
        member("top/../../escape"),
        member("/escape"),
        member("top/pipe", tarfile.FIFOTYPE),
        member("top/device", tarfile.CHRTYPE),
    ],
    ids=lambda bad: bad.name.replace("/", "_"),
)
def test_a_hostile_member_is_refused(machine: Machine, tmp_path: Path, bad: tarfile.TarInfo) -> None:
    machine.write("/root/bad.tar", archive_of(tmp_path, member("top", tarfile.DIRTYPE), bad).read_bytes())
    assert "not safe to unpack" in refused(machine, "install", "/root/bad.tar")
    assert machine.try_run("ls", "/escape", "/var/tmp/escape", "/var/escape").returncode == 2


def test_a_broken_description_and_an_unnamed_link_are_refused(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    where = unpack(bundle, machine)
    sums = "find . -type f ! -name 'SHA256SUMS*' | sed 's,^./,,' | sort | xargs sha256sum >SHA256SUMS"
    for content, words in (
        ("[]", "release.json"),
        ("{", "release.json"),
        ('{"architecture": "amd64"}', "release.json"),
    ):
        machine.write(f"{where}/release.json", content)
        machine.shell(f"cd {where}; {sums}")
        assert words in refused(machine, "install", where)
    machine.shell(f"ln -s /etc {where}/docs/etc")
    assert "docs/etc" in refused(machine, "install", where)
    machine.write(f"{where}/SHA256SUMS", b"\xff\xfe")
    assert "SHA256SUMS is not text" in refused(machine, "install", where)
    machine.run("rm", "-r", "/root/bundle")


def test_a_full_disk_is_refused_at_each_step(machine: Machine, stored: str, newer: Path) -> None:
    machine.fill_disk()
    assert "No space left" in refused(machine, "install", stored)
    machine.free_disk()
    machine.fill_disk(free_mb=200)
    assert "MB are needed: make room" in refused(machine, "install", stored)
    machine.free_disk()
    # It fills up meanwhile.
    reasons = []
    for delay_s in (0.1, 0.6, 1.2, 2.0, 3.0):
        install = f"edge-release install --json {stored} >/run/result 2>/run/words"
        machine.run("systemd-run", "-q", "--unit=filled", "--collect", "sh", "-c", install)
        time.sleep(delay_s)
        machine.fill_disk()
        machine.wait(lambda: machine.show("filled.service", "ActiveState") != "active", 60)
        machine.free_disk()
        result = json.loads(machine.read("/run/result"))
        assert result["changed"] == (release_of(newer) in edge_release(machine, "list")["releases"]), result
        reasons.append(result.get("reason", ""))
        assert machine.run("sh", "-c", "ls -d /var/tmp/edge-* 2>/dev/null || true") == ""
        machine.run("rm", "-rf", f"{OPT}/releases/{release_of(newer)}")
    assert any("No space left" in reason for reason in reasons), reasons
    edge_release(machine, "install", stored)


def test_no_switch_is_lost_on_a_full_disk(machine: Machine, stored: str, newer: Path, bundle: Path) -> None:
    edge_release(machine, "install", stored)
    machine.fill_disk()
    result = edge_release(machine, "apply", "--release", release_of(newer), status=1)
    assert "No space left" in result["reason"]
    machine.free_disk()
    assert current(machine) == release_of(bundle)
    assert not (opt(machine) / "switch.json").exists()
    wait_for_broker(machine)
    # The disk fills up between the preparation and the switch.
    order = {
        "from": release_of(bundle),
        "to": release_of(newer),
        "settings": False,
        "needs": {"ready": True, "frame": True, "broker": True},
        "first": False,
        "timeout_s": 20,
        "attempts": 0,
    }
    machine.write(f"{OPT}/switch.json", json.dumps(order))
    machine.run("rm", "-f", f"{OPT}/loaded-files.sha256")
    machine.fill_disk()
    machine.try_run("edge-release", "resume")
    machine.free_disk()
    assert not (opt(machine) / "switch.json").exists()
    result = json.loads(machine.read("/run/edge-release-last-switch.json"))
    assert result["outcome"] in ("applied", "rolled_back"), result
    assert current(machine) == result["release"]
    wait_for_broker(machine)
    if result["outcome"] == "applied":
        edge_release(machine, "apply", "--release", release_of(bundle))


def test_a_killed_installation_is_done_again(machine: Machine, stored: str, newer: Path) -> None:
    for delay_s in (0.2, 1.0, 2.0, 4.0):
        machine.run("systemd-run", "-q", "--unit=killed", "--collect", "edge-release", "install", stored)
        time.sleep(delay_s)
        machine.try_run("systemctl", "kill", "-s", "KILL", "killed.service")
        machine.wait(lambda: machine.show("killed.service", "ActiveState") != "active", 20)
    assert edge_release(machine, "install", stored)["release"] == release_of(newer)
    assert machine.run("sh", "-c", "ls -d /var/tmp/edge-* 2>/dev/null || true") == ""
    assert machine.run("ls", f"{OPT}/releases").split().count(release_of(newer)) == 1


def test_a_killed_switch_finishes(machine: Machine, stored: str, newer: Path, bundle: Path) -> None:
    """Both the program that waits and the service that works are killed, at different moments."""
    for number, delay_s in enumerate((0.0, 0.3, 0.7, 1.2)):
        edge_release(machine, "install", stored)
        wait_for_broker(machine)
        machine.run(
            "systemd-run", "-q", "--unit=asks", "--collect", "edge-release", "apply", "--release", release_of(newer)
        )
        machine.wait((opt(machine) / "switch.json").exists, 60, "the switch")
        time.sleep(delay_s)
        if number % 2:
            machine.try_run("systemctl", "kill", "-s", "KILL", "asks.service")
        machine.try_run("systemctl", "kill", "-s", "KILL", "edge-streamer-switch.service")
        machine.wait(lambda: machine.show("asks.service", "ActiveState") != "active", 60)
        result = edge_release(machine, "apply", "--release", release_of(newer))
        assert result["outcome"] in ("applied", "unchanged")
        assert current(machine) == release_of(newer)
        wait_for_broker(machine)
        assert edge_release(machine, "rollback")["release"] == release_of(bundle)
        assert not (opt(machine) / "switch.json").exists()


def test_a_second_edge_release_is_refused(machine: Machine, stored: str) -> None:
    machine.run("systemd-run", "-q", "--unit=first", "--collect", "edge-release", "install", stored)
    machine.wait(lambda: machine.try_run("flock", "-n", "/run/edge-release.lock", "true").returncode == 1, 20)
    result = edge_release(machine, "install", stored, status=1)
    assert result["reason"] == "another edge-release is running: try again when it has finished"
    machine.wait(lambda: machine.show("first.service", "ActiveState") != "active", 60)
    assert not edge_release(machine, "install", stored)["changed"]


def test_wrong_arguments_and_a_damaged_release_are_refused_in_words(machine: Machine, bundle: Path) -> None:
    assert "is not a file" in refused(machine, "apply", "--settings", "/root/none.toml")
    assert "is not a file" in refused(machine, "apply", "--settings", "/root")
    assert "there is no interrupted switch" in refused(machine, "resume")
    for seconds in ("nan", "-1", "0", "9", "801", "inf", "soon"):
        assert machine.try_run("edge-release", "apply", "--timeout-s", seconds).returncode == 2
    program = f"{OPT}/releases/{release_of(bundle)}/bin/edge-streamer"
    machine.run("mv", program, "/root/")
    assert "is damaged: rm -r /opt/edge-streamer/releases/" in refused(machine, "apply")
    machine.run("mv", "/root/edge-streamer", program)


def test_only_changed_credentials_restart_the_service(machine: Machine, site: Site) -> None:
    edge_release(machine, "apply")
    before = machine.show(SERVICE, "MainPID")
    assert edge_release(machine, "apply")["outcome"] == "unchanged"
    machine.run("touch", "/etc/edge-streamer/credentials/device.key", "/etc/edge-streamer/release.pub")
    assert edge_release(machine, "apply")["outcome"] == "unchanged"
    assert machine.show(SERVICE, "MainPID") == before
    site.provision(machine, DEVICE)
    assert edge_release(machine, "apply")["outcome"] == "applied"
    assert machine.show(SERVICE, "MainPID") != before
    machine.run("rm", "/etc/edge-streamer/release.pub")


def test_a_clock_in_1970_does_not_stop_an_update(machine: Machine, stored: str, newer: Path, bundle: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    shutil.copy(library, machine.root / "root/libfaketime.so.1")
    machine.shell(
        f"export LD_PRELOAD=/root/libfaketime.so.1 FAKETIME='1970-01-02 00:00:00'; date; edge-release install {stored}"
    )
    edge_release(machine, "apply", "--release", release_of(newer))
    edge_release(machine, "rollback")
    assert current(machine) == release_of(bundle)


def test_an_interrupted_uninstallation_can_be_repeated(machine: Machine, site: Site, bundle: Path) -> None:
    where = unpack(bundle, machine)
    machine.run("rm", "-r", f"{OPT}/releases")  # as an interrupted one leaves it
    assert edge_release(machine, "uninstall")["changed"]
    done = machine.try_run(f"{where}/edge-release", "uninstall")
    assert (done.returncode, "Traceback" in done.stdout) == (0, False), done.stdout
    install(machine, bundle, site, DEVICE)
    wait_for_broker(machine)
    assert machine.read(SETTINGS)
