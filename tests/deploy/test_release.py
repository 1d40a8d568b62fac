"""Releases on a device: installed side by side, switched, rolled back, removed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from tests.deploy.conftest import SETTINGS, edge_release, install, make_bundle, release_of, unpack
from tests.rigs.daemon import toml
from tests.rigs.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVICE = "edge-streamer.service"
DEVICE = "cam-1"
OPT = "/opt/edge-streamer"


def changed_bundle(
    bundle: Path, directory: Path, name: str, change: Callable[[Path], None], *, sums: bool = True
) -> Path:
    """Make a bundle of another release: the same content under another name, with one change."""
    with tarfile.open(bundle) as archive:
        archive.extractall(directory, filter="fully_trusted")
    old = directory / bundle.stem
    description = json.loads((old / "release.json").read_text())
    description["release"] = name
    (old / "release.json").write_text(json.dumps(description))
    change(old)
    if sums:
        script = "find . -type f ! -name 'SHA256SUMS*' | sed 's,^./,,' | sort | xargs sha256sum >SHA256SUMS"
        subprocess.run(["sh", "-c", script], cwd=old, check=True)
    new = directory / f"edge-streamer-{name}-amd64"
    old.rename(new)
    packed = directory / f"{new.name}.tar"
    subprocess.run(["tar", "-cf", packed, "-C", directory, new.name], check=True)
    shutil.rmtree(new)
    return packed


def runs_nothing(content: Path) -> None:
    """Make a release whose daemon exits at once, although all its modules can be loaded."""
    unit = content / "systemd/edge-streamer.service"
    unit.write_text(unit.read_text().replace("run --config", "--no-such-option run --config"))


def answers_without_a_picture(content: Path) -> None:
    """Make a release that starts, and whose camera delivers nothing."""
    unit = content / "systemd/edge-streamer.service"
    unit.write_text(unit.read_text().replace("[Install]", "Environment=EDGE__CAMERA__SOURCE=picamera2\n[Install]"))


@pytest.fixture(scope="module")
def releases(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("releases")
    return {
        "good": changed_bundle(bundle, directory, "2.0.0-good", lambda content: None),
        "third": changed_bundle(bundle, directory, "3.0.0-good", lambda content: None),
        "crashes": changed_bundle(bundle, directory, "2.0.1-crashes", runs_nothing),
        "blind": changed_bundle(bundle, directory, "2.0.2-blind", answers_without_a_picture),
    }


@pytest.fixture(scope="module")
def machine(network: Network, site: Site, bundle: Path) -> Iterator[Machine]:
    with Machine(network, "trixie", DEVICE, packages=True) as machine:
        install(machine, bundle, site, DEVICE)
        wait_for_broker(machine)
        yield machine


def wait_for_broker(machine: Machine) -> None:
    machine.wait(lambda: "broker connected" in machine.show(SERVICE, "StatusText"), 30, "the broker")


def put(machine: Machine, bundle: Path) -> str:
    """Install it beside the running release; return its release name."""
    machine.write(f"/root/{bundle.name}", bundle.read_bytes())
    edge_release(machine, "install", f"/root/{bundle.name}")
    machine.run("rm", f"/root/{bundle.name}")
    return release_of(bundle)


def opt(machine: Machine) -> Path:
    """The directory as seen from the host, also while the machine boots."""
    return machine.root / OPT.lstrip("/")


def post(machine: Machine, path: str) -> None:
    url = f"http://127.0.0.1:8081{path}"
    machine.run(
        "python3", "-c", f"import urllib.request as u; u.urlopen(u.Request('{url}', method='POST'), timeout=20)"
    )


def current(machine: Machine) -> str:
    return machine.run("basename", machine.run("readlink", "-f", f"{OPT}/current").strip()).strip()


def test_applying_what_is_in_force_changes_nothing(machine: Machine, bundle: Path) -> None:
    before = machine.show(SERVICE, "MainPID")
    result = edge_release(machine, "apply", "--release", release_of(bundle), "--settings", SETTINGS)
    assert (result["changed"], result["outcome"]) == (False, "unchanged")
    assert machine.show(SERVICE, "MainPID") == before


def test_a_working_release_is_put_in_force_and_the_old_one_kept(
    machine: Machine, bundle: Path, releases: dict[str, Path]
) -> None:
    wait_for_broker(machine)
    release = put(machine, releases["good"])
    result = edge_release(machine, "apply", "--release", release)
    assert (result["outcome"], result["release"], result["previous"]) == ("applied", release, release_of(bundle))
    assert result["seen"] == {"ready": True, "frame": True, "broker": True}
    assert 0 < result["downtime_s"] <= 5
    listed = edge_release(machine, "list")
    assert listed["releases"] == [release_of(bundle), release]


@pytest.mark.parametrize(("kind", "words"), [("crashes", "ended"), ("blind", "no frame")])
def test_a_release_that_does_not_work_is_taken_back(
    machine: Machine, releases: dict[str, Path], kind: str, words: str
) -> None:
    wait_for_broker(machine)
    before, settings = current(machine), machine.read(SETTINGS)
    release = put(machine, releases[kind])
    result = edge_release(machine, "apply", "--release", release, "--timeout-s", "20", status=3)
    assert (result["outcome"], result["release"]) == ("rolled_back", before)
    assert words in result["reason"]
    assert (current(machine), machine.read(SETTINGS)) == (before, settings)
    assert machine.show(SERVICE, "ActiveState") == "active"
    wait_for_broker(machine)
    assert release not in edge_release(machine, "list")["releases"]


def test_settings_that_are_refused_leave_the_device_as_it_was(machine: Machine) -> None:
    before, settings = machine.show(SERVICE, "MainPID"), machine.read(SETTINGS)
    machine.write("/root/bad.toml", settings.replace('"synthetic"', '"none"').replace('id = "cam-1"', 'id = "a b"'))
    result = edge_release(machine, "apply", "--settings", "/root/bad.toml", status=1)
    assert "device.id: " in result["reason"]
    assert "camera.source: " in result["reason"]
    assert (machine.show(SERVICE, "MainPID"), machine.read(SETTINGS)) == (before, settings)


def test_settings_that_lose_the_broker_or_the_picture_are_taken_back(machine: Machine, site: Site) -> None:
    wait_for_broker(machine)
    settings = machine.read(SETTINGS)
    wrong = site.settings(DEVICE, {"mqtt": {"port": 1}})
    machine.write("/root/wrong.toml", toml(wrong))
    result = edge_release(machine, "apply", "--settings", "/root/wrong.toml", "--timeout-s", "15", status=3)
    assert "no broker" in result["reason"]
    assert machine.read(SETTINGS) == settings


def test_settings_that_work_are_put_in_force(machine: Machine, site: Site) -> None:
    wait_for_broker(machine)
    machine.write("/root/other.toml", toml(site.settings(DEVICE, {"log": {"level": "debug"}})))
    assert edge_release(machine, "apply", "--settings", "/root/other.toml")["outcome"] == "applied"
    assert machine.run("stat", "-c", "%U:%G %a", SETTINGS) == "root:edge-streamer 640\n"


def test_a_power_cut_during_a_switch_leaves_a_working_release(machine: Machine, releases: dict[str, Path]) -> None:
    """The device boots with one of the two releases, complete, and finishes the switch."""
    third = put(machine, releases["third"])
    for moment_s in (0.0, 0.3, 0.8, 1.5, 2.5):
        wait_for_broker(machine)
        edge_release(machine, "apply", "--release", put(machine, releases["good"]))
        wait_for_broker(machine)
        put(machine, releases["third"])
        machine.run("systemd-run", "-q", "--collect", "edge-release", "apply", "--release", third)
        machine.wait((opt(machine) / "switch.json").exists, 60, "the switch")
        time.sleep(moment_s)
        machine.cut()
        interrupted = machine.has_written(f"{OPT}/switch.json")
        assert interrupted or moment_s > 0  # a fast machine finishes the switch before the later moments
        machine.boot()
        machine.wait(lambda: not (opt(machine) / "switch.json").exists(), 60, "the switch's end")
        assert current(machine) == third
        if interrupted:
            assert json.loads(machine.read("/run/edge-release-last-switch.json"))["outcome"] == "applied"
        assert machine.show(SERVICE, "ActiveState") == "active"


def test_a_power_cut_during_an_install_leaves_a_working_release(machine: Machine, releases: dict[str, Path]) -> None:
    running = current(machine)
    bundle = releases["crashes"]
    machine.write("/root/new.tar", bundle.read_bytes())
    machine.run("systemd-run", "-q", "--collect", "edge-release", "install", "/root/new.tar")
    release = release_of(bundle)
    machine.wait((opt(machine) / "releases" / release / "bin").exists, 60)
    machine.cut()
    machine.boot()
    assert release not in edge_release(machine, "list")["releases"]
    assert current(machine) == running
    assert edge_release(machine, "install", "/root/new.tar")["changed"]
    assert not edge_release(machine, "install", "/root/new.tar")["changed"]


def test_rollback_goes_to_the_previous_release(machine: Machine) -> None:
    wait_for_broker(machine)
    listed = edge_release(machine, "list")
    result = edge_release(machine, "rollback")
    assert (result["outcome"], result["release"]) == ("applied", listed["previous"])
    assert edge_release(machine, "list")["previous"] == listed["current"]


def test_a_stopped_stream_stays_stopped_over_an_update(machine: Machine) -> None:
    post(machine, "/api/v1/stream/stop")
    wait_for_broker(machine)
    previous = edge_release(machine, "list")["previous"]
    assert edge_release(machine, "apply", "--release", previous)["outcome"] == "applied"
    assert machine.show(SERVICE, "StatusText").startswith("stopped, ")
    post(machine, "/api/v1/stream/start")


def test_uninstall_leaves_only_what_it_lists(machine: Machine) -> None:
    result = edge_release(machine, "uninstall")
    assert result["kept"] == ["/etc/edge-streamer", "/var/lib/edge-streamer", "/etc/sysusers.d/edge-streamer.conf"]
    names = "\\( -name '*edge-streamer*' -o -name 'edge-release*' \\)"
    find = f"find / -xdev {names} -not -path '/proc/*' -not -path '/var/log/*'"
    left = machine.run("sh", "-c", f"{find} | sort").split()
    # In /root are the test's own.
    assert [path for path in left if not path.startswith(("/root/", "/etc/edge-streamer/"))] == sorted(result["kept"])
    assert "could not be found" in machine.try_run("systemctl", "status", SERVICE).stdout
    assert machine.try_run("pgrep", "-u", "edge-streamer").stdout == ""


def test_purge_removes_all(machine: Machine, site: Site, bundle: Path) -> None:
    install(machine, bundle, site, DEVICE)
    result = edge_release(machine, "uninstall", "--purge")
    assert result["kept"] == []
    assert machine.try_run("id", "edge-streamer").returncode == 1
    assert machine.try_run("ls", "/etc/edge-streamer", "/var/lib/edge-streamer").returncode == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: (content / "SHA256SUMS").unlink(), "SHA256SUMS: No such file"),
        (
            lambda content: (content / "systemd/sysusers.conf").write_text("u root"),
            "is damaged (systemd/sysusers.conf)",
        ),
        (lambda content: (content / "more").write_text("x"), "has a file that its checksums do not name: more"),
    ],
)
def test_a_damaged_bundle_is_refused(
    machine: Machine, bundle: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    damaged = changed_bundle(bundle, tmp_path, "9.0.0-damaged", change, sums=False)
    where = unpack(damaged, machine)
    if words.startswith("SHA256SUMS"):
        assert words in machine.try_run(f"{where}/edge-release", "check", where).stdout
    else:
        # The change also changed the description, whose checksum is corrected first.
        machine.shell(f"cd {where}; sed -i '/release.json$/d' SHA256SUMS; sha256sum release.json >>SHA256SUMS")
        assert words in machine.try_run(f"{where}/edge-release", "check", where).stdout


def test_a_signature_is_required_if_there_is_a_key(machine: Machine, tmp_path: Path) -> None:
    for name in ("own", "other"):
        key = tmp_path / f"{name}.key"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", tmp_path / f"{name}.pub"], check=True)
    signed = make_bundle(tmp_path, "--key", str(tmp_path / "own.key"))
    where = unpack(signed, machine, "/root/signed")
    for name in ("own", "other"):
        machine.write(f"/root/{name}.pub", (tmp_path / f"{name}.pub").read_bytes())
    assert "can run" in machine.run(f"{where}/edge-release", "check", "--public-key", "/root/own.pub", where)
    done = machine.try_run(f"{where}/edge-release", "check", "--public-key", "/root/other.pub", where)
    assert (done.returncode, "signature does not match" in done.stdout) == (1, True)
    machine.run("rm", f"{where}/SHA256SUMS.sig")
    assert (
        "is not signed"
        in machine.try_run(f"{where}/edge-release", "check", "--public-key", "/root/own.pub", where).stdout
    )


def test_an_unsuitable_machine_is_refused_in_one_sentence(machine: Machine, bundle: Path) -> None:
    where = unpack(bundle, machine)
    for setup, undo, words in (
        (
            "sed -i 's/VERSION_ID=.*/VERSION_ID=11/' /usr/lib/os-release",
            "sed -i 's/VERSION_ID=.*/VERSION_ID=\"13\"/' /usr/lib/os-release",
            "is not supported: flash",
        ),
        (
            "printf '#!/bin/sh\\necho armhf\\n' >/usr/local/sbin/dpkg; chmod 755 /usr/local/sbin/dpkg",
            "rm /usr/local/sbin/dpkg",
            "32-bit system (armhf): flash the 64-bit",
        ),
        (
            "printf '#!/bin/sh\\necho arm64\\n' >/usr/local/sbin/dpkg; chmod 755 /usr/local/sbin/dpkg",
            "rm /usr/local/sbin/dpkg",
            "the bundle is for amd64, this system is arm64",
        ),
        (
            "mv /usr/lib/python3/dist-packages/numpy /root/",
            "mv /root/numpy /usr/lib/python3/dist-packages/",
            "apt-get install python3-numpy",
        ),
    ):
        machine.shell(setup)
        done = machine.try_run(f"{where}/edge-release", "install", where)
        machine.shell(undo)
        assert (done.returncode, words in done.stdout, done.stdout.count("\n")) == (1, True, 1), done.stdout
    assert machine.try_run("ls", f"{OPT}/releases").returncode == 2


def frame(machine: Machine) -> bool:
    url = "http://127.0.0.1:8081/api/v1/snapshot.jpg"
    script = f"import urllib.request as u; print(u.urlopen('{url}', timeout=20).status)"
    return machine.try_run("python3", "-c", script).stdout == "200\n"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_full_disk_and_one_that_fails_do_not_stop_the_video(
    network: Network, site: Site, bundle: Path, suite: str
) -> None:
    with Machine(network, suite, f"disk-{suite}", packages=True, disk_mb=900) as machine:
        install(machine, bundle, site, DEVICE)
        machine.fill_disk()
        assert frame(machine)
        refused = machine.try_run("sh", "-c", "edge-release apply --restart --json 2>&1; echo status $?").stdout
        machine.run("systemctl", "restart", SERVICE, timeout_s=60)
        assert frame(machine), refused
        machine.free_disk()
        machine.break_disk()
        assert frame(machine)
        machine.run("systemctl", "restart", SERVICE, timeout_s=60)
        assert frame(machine)
