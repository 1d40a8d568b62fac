"""install.sh: one command on a Raspberry Pi without Ansible, with the same result."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.deploy.conftest import SETTINGS, release_of, unpack
from tests.deploy.test_release import changed_bundle, current, wait_for_broker
from tests.deploy.test_unit import watched
from tests.rigs.machine import Machine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVICE = "edge-streamer.service"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, network: Network, site: Site) -> Iterator[Machine]:
    """Just flashed, with the files that a person copied to it."""
    with Machine(network, request.param, f"sh-{request.param}") as machine:
        certificate, key = site.authority.issue(machine.suite)
        _, other = site.authority.issue("other")
        early, early_key = site.authority.issue("early", since=timedelta(hours=1))
        for name, file in (
            ("ca.pem", site.authority.ca_file),
            ("cert.pem", certificate),
            ("key.pem", key),
            ("other.pem", other),
            ("early.pem", early),
            ("early.key", early_key),
            ("jwks.json", site.jwks_file),
        ):
            machine.write(f"/root/{name}", file.read_bytes())
        yield machine


def install_sh(machine: Machine, bundle: Path, *options: str, answers: str = "") -> subprocess.CompletedProcess[str]:
    where = unpack(bundle, machine)
    return machine.try_run("sh", "-c", 'cd "$0" && ./install.sh "$@"', where, *options, stdin=answers)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.rstrip().splitlines()[-1]


def test_wrong_input_is_refused_in_one_line_and_changes_nothing(machine: Machine, bundle: Path) -> None:
    own = ["--yes", "--device-id", "cam-1", "--broker", "broker.example", "--jwks", "/root/jwks.json"]
    for options, status, words in (
        (["--nonsense"], 2, ""),
        (["--broker"], 2, "--broker needs a value"),
        (["--yes"], 1, "a broker is needed: --broker HOST"),
        (["--yes", "--broker", "b"], 1, "the backend's public keys are needed: --jwks FILE"),
        ([*own, "--device-id", "a b"], 1, "--device-id: letters, digits, - and _ only"),
        ([*own, "--ca", "/root/none.pem"], 1, "--ca: /root/none.pem cannot be read"),
        ([*own, "--cert", "/root/cert.pem"], 1, "a certificate needs its private key: --key FILE"),
        ([*own, "--cert", "/root/cert.pem", "--key", "/root/other.pem"], 1, "does not belong to /root/cert.pem"),
        ([*own, "--cert", "/root/jwks.json", "--key", "/root/key.pem"], 1, "is not a certificate in PEM"),
        ([*own, "--cert", "/root/early.pem", "--key", "/root/early.key"], 1, "set the clock, or get another one"),
        ([*own, "--ca", "/root"], 1, "--ca: /root cannot be read"),
    ):
        done = install_sh(machine, bundle, *options)
        assert done.returncode == status, (options, done.stdout)
        assert words in last_line(done), options
    where = unpack(bundle, machine)
    machine.shell(f"cp -r {where} /tmp/mine; chmod -R a+rX /tmp/mine")
    done = machine.try_run("runuser", "-u", "pi", "--", "/tmp/mine/install.sh")
    assert (done.returncode, last_line(done)) == (1, "install: only root can install: sudo ./install.sh")
    assert machine.try_run("ls", "/opt/edge-streamer", "/etc/edge-streamer").returncode == 2


async def test_it_asks_for_missing_options(machine: Machine, bundle: Path, site: Site) -> None:
    """Answered with names of files in the directory that the command is started in, and in the home directory."""
    where = unpack(bundle, machine)
    machine.shell(f"mv {where} /root/unpacked; mount -t tmpfs -o size=4k tmpfs /tmp; echo full >/tmp/full")
    answers = f"{machine.suite}\n{site.broker.address}\nca.pem\n~/cert.pem\nkey.pem\njwks.json\n"
    command = f"cd /root; unpacked/install.sh --port {site.broker.port} --hardware-watchdog"
    done = machine.try_run("sh", "-c", command, stdin=answers)
    machine.run("umount", "/tmp")
    assert done.returncode == 0, done.stdout
    assert "Device id [" in done.stdout
    assert "ssh -L 8081:127.0.0.1:8081" in last_line(done)
    assert machine.run("stat", "-c", "%U:%G %a", SETTINGS) == "root:edge-streamer 640\n"
    assert "cgroup_enable=memory" in machine.read("/boot/firmware/cmdline.txt")
    assert machine.run("systemctl", "show", "-p", "RuntimeWatchdogUSec", "--value").strip() == "15s"
    wait_for_broker(machine)
    # The clock of the tests' machine is not synchronized; tokens are accepted only if it is trusted.
    text = machine.read(SETTINGS).replace("[auth]", "[auth]\ntrust_clock = true")
    machine.write("/root/trusting.toml", text)
    assert install_sh(machine, bundle, "--yes", "--settings", "/root/trusting.toml").returncode == 0
    async with watched(site, machine.suite):
        pass


def test_a_second_run_asks_nothing_and_changes_nothing(machine: Machine, bundle: Path) -> None:
    before = machine.show(SERVICE, "MainPID")
    done = install_sh(machine, bundle)
    assert (done.returncode, machine.show(SERVICE, "MainPID")) == (0, before), done.stdout


def test_a_wrong_renewal_is_refused_before_anything_changes(machine: Machine, bundle: Path, site: Site) -> None:
    """Without the other half of the pair, or with settings that the release rejects."""
    before = machine.show(SERVICE, "MainPID")
    state = machine.run("sh", "-c", "find /etc/edge-streamer -type f | sort | xargs sha256sum")
    machine.write("/root/bad.toml", machine.read(SETTINGS).replace(f'id = "{machine.suite}"', 'id = "a b"'))
    for options, words in (
        (("--cert", "/root/early.pem"), "set the clock, or get another one"),
        (("--key", "/root/other.pem"), "does not belong to /etc/edge-streamer/credentials/device.pem"),
        (("--settings", "/root/bad.toml", "--ca", "/root/early.pem"), "device.id: "),
    ):
        done = install_sh(machine, bundle, "--yes", *options)
        assert (done.returncode, words in last_line(done)) == (1, True), done.stdout
    assert machine.run("sh", "-c", "find /etc/edge-streamer -type f | sort | xargs sha256sum") == state
    assert machine.show(SERVICE, "MainPID") == before


def test_a_newer_bundle_is_an_update(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    newer = changed_bundle(bundle, tmp_path, "2.0.0-newer", lambda _: None)
    settings = machine.read(SETTINGS)
    done = install_sh(machine, newer)
    assert done.returncode == 0, done.stdout
    assert "2.0.0-newer is in force; downtime " in done.stdout
    assert (current(machine), machine.read(SETTINGS)) == (release_of(newer), settings)
