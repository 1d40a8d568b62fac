"""The playbooks over real ssh on machines that were just flashed: the output, and the state of the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.conftest import SETTINGS, make_bundle, release_of
from tests.deploy.test_release import changed_bundle, current, opt, runs_nothing, wait_for_broker
from tests.deploy.test_unit import watched
from tests.rigs.machine import Machine
from tests.rigs.playbook import Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVICE = "edge-streamer.service"
CREDENTIALS = "/etc/edge-streamer/credentials"


@pytest.fixture(scope="module")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_bundle(bundle, tmp_path_factory.mktemp("newer"), "2.0.0-newer", lambda _: None)


@pytest.fixture(scope="module")
def crashing(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_bundle(bundle, tmp_path_factory.mktemp("crashing"), "2.0.1-crashing", runs_nothing)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, network: Network) -> Iterator[Machine]:
    with Machine(network, request.param, f"ansible-{request.param}") as machine:
        yield machine


@pytest.fixture(scope="module")
def operator(machine: Machine, site: Site, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operator"), site, bundle, {machine.suite: machine})


def files_of(machine: Machine) -> str:
    """Everything below the installation's directories that has changed since /root/mark was touched."""
    places = "/etc /opt /usr/local /var/lib/edge-streamer /boot"
    return machine.run("sh", "-c", f"find {places} -newer /root/mark -not -path '*/.ansible*' 2>/dev/null | sort")


def test_check_mode_on_a_fresh_device_shows_what_would_change_and_changes_nothing(
    machine: Machine, operator: Operator
) -> None:
    machine.shell("rm -rf /var/lib/apt/lists/*; sleep 1.1; touch /root/mark; sleep 1.1")
    run = operator.play("install.yml", "--check", "--diff")
    assert run.status == 0, run.output
    assert "no release is in force; a run would put" in run.output
    assert run.changed[machine.suite] > 5
    assert '+host = "' in run.output
    assert "PRIVATE KEY" not in run.output
    assert files_of(machine) == ""


def test_a_rollback_of_a_device_that_was_never_installed(machine: Machine, operator: Operator) -> None:
    run = operator.play("rollback.yml")
    assert (run.status, run.failed) == (2, {machine.suite}), run.output
    assert "the daemon is probably not installed" in run.message()


def test_wrong_input_stops_with_one_sentence_before_anything_changes(
    machine: Machine, operator: Operator, site: Site, tmp_path: Path
) -> None:
    device = machine.suite
    certificate, key = site.authority.issue("expired", until=timedelta(hours=-1))
    expired = {"device.pem": certificate.read_text(), "device.key": key.read_text()}
    own = operator.hosts[device]["edge_streamer_credentials"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"edge_streamer_bundle": "/nonexistent.tar"}, "/nonexistent.tar cannot be read (No such file or directory, "),
        ({"edge_streamer_device_id": "a b"}, "a b has other characters than letters, digits, - and _"),
        ({"edge_streamer_gate_timeout_s": "soon"}, "edge_streamer_gate_timeout_s"),
        ({"edge_streamer_files": {"../ca.pem": "x"}}, "../ca.pem is not a plain file name"),
    ]
    machine.shell("sleep 1.1; touch /root/mark; sleep 1.1")
    for variables, words in cases:
        run = operator.play("install.yml", **variables)
        assert (run.status, run.failed) == (2, {device}), run.output
        assert words in run.message()
    for credentials, words in (
        (expired, "device.pem has expired: get a new one"),
        ({**own, "device.key": expired["device.key"]}, "device.key does not belong to device.pem"),
        ({**own, "device.pem": "nonsense"}, "device.pem is not a certificate in PEM"),
        ({"device.pem": own["device.pem"]}, "does not have below /etc/edge-streamer: credentials/device.key"),
    ):
        operator.hosts[device]["edge_streamer_credentials"] = credentials
        run = operator.play("install.yml")
        assert (run.status, run.failed) == (2, {device}), run.output
        assert words in run.message()
    operator.hosts[device]["edge_streamer_credentials"] = own
    assert files_of(machine) == ""
    for architecture, words in (
        ("armhf", "32-bit system (armhf): flash the 64-bit Raspberry Pi OS"),
        ("arm64", "the bundle is for amd64, this system is arm64: make one with ./dev bundle --arch arm64"),
    ):
        machine.write("/usr/local/bin/dpkg", f"#!/bin/sh\necho {architecture}\n", 0o755)
        run = operator.play("install.yml")
        machine.run("rm", "/usr/local/bin/dpkg")
        assert words in run.message()
    machine.shell(
        "cp -P /etc/os-release /root/; rm /etc/os-release; echo 'PRETTY_NAME=\"Raspbian 11\"' >/etc/os-release"
    )
    assert "Raspbian 11 is not supported: flash" in operator.play("install.yml").message()
    machine.shell("rm /etc/os-release; mv /root/os-release /etc/; sleep 1.1; touch /root/mark; sleep 1.1")
    unreachable = operator.hosts[device]["ansible_host"]
    operator.hosts[device]["ansible_host"] = unreachable.rpartition(".")[0] + ".250"
    run = operator.play("install.yml", "-T", "3")
    operator.hosts[device]["ansible_host"] = unreachable
    assert (run.status, run.failed) == (4, {device})
    assert files_of(machine) == ""


async def test_from_nothing_to_a_picture(
    machine: Machine, operator: Operator, site: Site, record_property: Callable[[str, object], None]
) -> None:
    run = operator.play("install.yml")
    assert run.status == 0, run.output
    record_property("first_run_s", round(run.took_s, 1))
    assert "is in force; downtime " in run.output
    ready = machine.run(
        "python3", "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/readyz').read().decode())"
    )
    assert json.loads(ready)["status"] == "ready"
    async with watched(site, machine.suite):  # a decoded frame, over mosquitto with TLS
        pass
    modes = machine.run("stat", "-c", "%n %U:%G %a", SETTINGS, CREDENTIALS, f"{CREDENTIALS}/device.key")
    assert modes.splitlines() == [
        f"{SETTINGS} root:edge-streamer 640",
        f"{CREDENTIALS} root:root 700",
        f"{CREDENTIALS}/device.key root:root 600",
    ]
    assert "cgroup_enable=memory" in machine.read("/boot/firmware/cmdline.txt")
    assert len(machine.read("/boot/firmware/cmdline.txt").splitlines()) == 1
    assert "SystemMaxUse=200M" in machine.read("/etc/systemd/journald.conf.d/edge-streamer.conf")
    assert "PRIVATE KEY" not in run.output


def test_no_batch_is_started_after_one_with_a_failed_device(
    machine: Machine, operator: Operator, bundle: Path, tmp_path: Path
) -> None:
    """Four names of one device. The second one refuses its bundle, or cannot be reached."""
    hostile = changed_bundle(bundle, tmp_path, "9.0.0", lambda content: (content / "docs/x").symlink_to("/etc/shadow"))
    fleet = Operator(tmp_path, operator.site, bundle, dict.fromkeys(("a", "b", "c", "d"), machine))
    for host in fleet.hosts.values():
        host.update(operator.hosts[machine.suite], edge_streamer_device_id=machine.suite)
    fleet.hosts["b"]["edge_streamer_bundle"] = str(hostile)
    run = fleet.play("install.yml", "--forks", "1", serial=[1, 2, 1])
    assert (run.status, set(run.changed)) == (2, {"a", "b", "c"}), run.output
    assert "the bundle is not safe to unpack (" in run.output
    assert "no further batch is started, because these devices failed: b" in run.output
    run = fleet.play("install.yml", "--limit", "b")
    assert (run.status, run.failed) == (2, {"b"}), run.output
    fleet.hosts["b"]["ansible_host"] = "nowhere.invalid"
    for playbook in ("install.yml", "rollback.yml"):
        run = fleet.play(playbook, "--check", "--forks", "1", "-T", "5", serial=[1, 2, 1])
        assert (run.status != 0, set(run.changed)) == (True, {"a", "b", "c"}), run.output
    # The other names wrote their own settings.
    run = operator.play("install.yml")
    assert run.status == 0, run.output


def test_the_second_run_changes_nothing(
    machine: Machine, operator: Operator, record_property: Callable[[str, object], None]
) -> None:
    before = machine.show(SERVICE, "MainPID")
    run = operator.play("install.yml")
    record_property("second_run_s", round(run.took_s, 1))
    assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    run = operator.play("install.yml", "--check", "--diff")
    assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    assert machine.show(SERVICE, "MainPID") == before


def test_settings_that_are_refused_leave_the_device_as_it_was(machine: Machine, operator: Operator) -> None:
    before, settings = machine.show(SERVICE, "MainPID"), machine.read(SETTINGS)
    wrong = {
        **operator.variables["edge_streamer_settings"],
        "camera": {"source": "synthetic", "stall_s": 0, "nonsense": 1},
    }
    run = operator.play("install.yml", edge_streamer_settings=wrong)
    assert (run.status, run.failed) == (2, {machine.suite})
    assert "camera.stall_s: " in run.message()
    assert "camera.nonsense: unknown key" in run.message()
    assert (machine.show(SERVICE, "MainPID"), machine.read(SETTINGS)) == (before, settings)


def test_a_new_certificate_restarts_the_daemon(machine: Machine, operator: Operator, site: Site) -> None:
    certificate, key = site.authority.issue(machine.suite)
    mine = {"device.pem": certificate.read_text(), "device.key": key.read_text()}
    operator.hosts[machine.suite]["edge_streamer_credentials"] = mine
    before = machine.show(SERVICE, "MainPID")
    run = operator.play("install.yml", "--tags", "settings")
    assert run.status == 0, run.output
    assert machine.show(SERVICE, "MainPID") != before
    wait_for_broker(machine)


def test_a_certificate_that_an_earlier_run_only_copied_restarts_the_daemon(
    machine: Machine, operator: Operator, site: Site
) -> None:
    certificate, key = site.authority.issue(machine.suite)
    mine = {"device.pem": certificate.read_text(), "device.key": key.read_text()}
    operator.hosts[machine.suite]["edge_streamer_credentials"] = mine
    before = machine.show(SERVICE, "MainPID")
    assert operator.play("install.yml", "--tags", "files").status == 0
    assert machine.show(SERVICE, "MainPID") == before
    run = operator.play("install.yml", "--tags", "release")
    assert (run.status, run.changed) == (0, {machine.suite: 1}), run.output
    after = machine.show(SERVICE, "MainPID")
    assert after != before
    wait_for_broker(machine)
    assert operator.play("install.yml", "--tags", "release").changed == {machine.suite: 0}
    assert machine.show(SERVICE, "MainPID") == after


def test_host_and_boot_options_are_applied_once_and_removed_again(machine: Machine, operator: Operator) -> None:
    options: dict[str, Any] = {
        "edge_streamer_hardware_watchdog": "yes",  # as `-e` passes it
        "edge_streamer_hold_libcamera": "false",
        "edge_streamer_boot_config": ["dtoverlay=imx708", "camera_auto_detect=0", "gpu_mem=64", "dtparam=audio=off"],
    }
    run = operator.play("install.yml", "--tags", "host,boot", **options)
    assert run.status == 0, run.output
    assert "they take effect with the next reboot" in run.output
    assert machine.run("systemctl", "show", "-p", "RuntimeWatchdogUSec", "--value").strip() == "15s"
    assert machine.try_run("ls", "/etc/apt/apt.conf.d/51edge-streamer").returncode == 2
    lines = ["[all]", *options["edge_streamer_boot_config"]]
    assert "\n".join(lines) + "\n" in machine.read("/boot/firmware/config.txt")
    for _ in range(2):
        run = operator.play("install.yml", "--tags", "host,boot", **options)
        assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    assert operator.play("install.yml", "--tags", "host,boot").status == 0
    assert "dtoverlay" not in machine.read("/boot/firmware/config.txt")


def test_the_device_reboots_for_its_boot_options_and_makes_up_for_a_lost_reboot(
    machine: Machine, operator: Operator
) -> None:
    # A container has the kernel options of its host: here, those that the device's own file had when it booted.
    show = "cp /boot/firmware/cmdline.txt /run/cmdline; mount --bind /run/cmdline /proc/cmdline"
    unit = f"[Unit]\nBefore=ssh.service\n[Service]\nType=oneshot\nExecStart=/bin/sh -c '{show}'\n"
    machine.write("/etc/systemd/system/cmdline.service", unit + "[Install]\nWantedBy=multi-user.target\n")
    machine.write("/boot/firmware/cmdline.txt", "console=tty1 rootwait\n\n")
    machine.run("systemctl", "enable", "--now", "cmdline.service")
    run = operator.play("install.yml", "--tags", "boot")
    assert "they take effect with the next reboot" in run.output, run.output
    assert machine.read("/boot/firmware/cmdline.txt") == "console=tty1 rootwait cgroup_enable=memory\n\n"
    restarter = threading.Thread(target=machine.wait_rebooted, args=(120,))
    restarter.start()
    run = operator.play("install.yml", "--tags", "boot", edge_streamer_reboot=True)
    restarter.join()
    assert (run.status, run.changed) == (0, {machine.suite: 1}), run.output
    run = operator.play("install.yml", "--tags", "boot", edge_streamer_reboot=True)
    assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    machine.run("systemctl", "disable", "--now", "cmdline.service")


def test_an_update_is_kept_and_one_that_crashes_is_rolled_back(
    machine: Machine,
    operator: Operator,
    newer: Path,
    crashing: Path,
    record_property: Callable[[str, object], None],
) -> None:
    wait_for_broker(machine)
    renamed = shutil.copy(newer, operator.directory / "any name.tar")
    run = operator.play("install.yml", edge_streamer_bundle=str(renamed))
    assert run.status == 0, run.output
    downtime_s = json.loads(machine.read("/run/edge-release-last-switch.json"))["downtime_s"]
    record_property("downtime_s", downtime_s)
    assert downtime_s <= 5
    assert f"2.0.0-newer is in force; downtime {downtime_s} s" in run.output
    wait_for_broker(machine)
    run = operator.play("install.yml", edge_streamer_bundle=str(crashing))
    assert (run.status, run.failed) == (2, {machine.suite})
    assert "the service ended" in run.message()
    assert current(machine) == "2.0.0-newer"
    wait_for_broker(machine)


def test_the_rollback_playbook_returns_to_the_previous_release(
    machine: Machine, operator: Operator, bundle: Path, newer: Path
) -> None:
    run = operator.play("rollback.yml")
    assert run.status == 0, run.output
    run = operator.play("install.yml", "--check", edge_streamer_bundle=str(newer))
    assert (run.status, run.changed) == (0, {machine.suite: 1}), run.output
    assert f"{release_of(bundle)} is in force; a run would put 2.0.0-newer in force" in run.output
    assert current(machine) == release_of(bundle)
    wait_for_broker(machine)


def test_an_update_that_a_power_cut_interrupts_is_completed_after_the_boot(
    machine: Machine, operator: Operator, newer: Path
) -> None:
    runs = []
    update = threading.Thread(target=lambda: runs.append(operator.play("install.yml", edge_streamer_bundle=str(newer))))
    update.start()
    machine.wait((opt(machine) / "switch.json").exists, 120, "the switch")
    machine.cut()
    update.join()
    assert runs[0].failed == {machine.suite}
    machine.boot()
    machine.wait(lambda: not (opt(machine) / "switch.json").exists(), 60, "the switch's end")
    assert current(machine) == "2.0.0-newer"
    run = operator.play("install.yml", edge_streamer_bundle=str(newer))
    assert run.status == 0, run.output
    wait_for_broker(machine)


def assert_purged(machine: Machine) -> None:
    assert machine.try_run("ls", "/etc/edge-streamer", "/var/lib/edge-streamer").returncode == 2
    assert machine.try_run("id", "edge-streamer").returncode == 1


def test_the_uninstall_playbook_keeps_the_data_and_a_purge_removes_it(machine: Machine, operator: Operator) -> None:
    run = operator.play("uninstall.yml")
    assert run.status == 0, run.output
    assert machine.try_run("ls", "/opt/edge-streamer", "/etc/systemd/system/edge-streamer.service").returncode == 2
    assert "CREDENTIAL" not in run.output
    run = operator.play("uninstall.yml")
    assert (run.status, run.changed) == (0, {machine.suite: 0})
    # What stayed serves the next installation.
    assert operator.play("install.yml").status == 0
    assert operator.play("uninstall.yml").status == 0
    # A purge also removes what an earlier uninstallation kept.
    assert operator.play("uninstall.yml", edge_streamer_purge=True).status == 0
    assert_purged(machine)
    assert operator.play("install.yml").status == 0
    assert operator.play("uninstall.yml", edge_streamer_purge=True).status == 0
    assert_purged(machine)


def test_only_bundles_with_the_right_signature_are_taken(
    network: Network, site: Site, bundle: Path, tmp_path: Path
) -> None:
    key, public = tmp_path / "release.key", tmp_path / "release.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    signed = make_bundle(tmp_path, "--key", str(key))
    with Machine(network, "trixie", "signed", packages=True) as machine:
        operator = Operator(tmp_path, site, bundle, {"signed": machine})
        run = operator.play("install.yml", edge_streamer_release_public_key=public.read_text())
        assert "the bundle is not signed" in run.message()
        assert not (opt(machine) / "current").exists()
        good: dict[str, Any] = {
            "edge_streamer_bundle": str(signed),
            "edge_streamer_release_public_key": public.read_text(),
        }
        assert operator.play("install.yml", **good).status == 0


def test_a_fleet_stops_at_the_first_batch_with_a_broken_device(
    network: Network, site: Site, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    """Three devices, of which the second one cannot start the new release."""
    machines = {f"fleet-{n}": Machine(network, "trixie", f"fleet-{n}", packages=True) for n in (1, 2, 3)}
    try:
        for machine in machines.values():
            machine.boot()
        operator = Operator(tmp_path, site, bundle, machines)
        run = operator.play("install.yml", serial=["100%"])
        assert (run.status, run.failed) == (0, set()), run.output
        for machine in machines.values():
            wait_for_broker(machine)
        # The new release cannot start on this device.
        drop_in = "[Service]\nExecStartPre=/bin/sh -c '! readlink /opt/edge-streamer/current | grep -q newer'\n"
        machines["fleet-2"].write(f"/etc/systemd/system/{SERVICE}.d/local.conf", drop_in)
        machines["fleet-2"].run("systemctl", "daemon-reload")
        run = operator.play("install.yml", edge_streamer_bundle=str(newer))
        assert (run.status, run.failed) == (2, {"fleet-2"})
        now = {name: current(machine) for name, machine in machines.items()}
        assert now == {"fleet-1": "2.0.0-newer", "fleet-2": release_of(bundle), "fleet-3": release_of(bundle)}
        assert "fleet-3" not in run.changed
        for machine in machines.values():
            wait_for_broker(machine)
    finally:
        for machine in machines.values():
            machine.remove()
