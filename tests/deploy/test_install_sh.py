"""install.sh: one command on a Raspberry Pi without Ansible, with the same result."""

from __future__ import annotations

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
    """Just flashed, with what a person copied to it."""
    with Machine(network, request.param, f"sh-{request.param}") as machine:
        certificate, key = site.authority.issue(machine.suite)
        _, other = site.authority.issue("other")
        for name, file in (
            ("ca.pem", site.authority.ca_file),
            ("cert.pem", certificate),
            ("key.pem", key),
            ("other.pem", other),
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
    ):
        done = install_sh(machine, bundle, *options)
        assert done.returncode == status, (options, done.stdout)
        assert words in last_line(done), options
    where = unpack(bundle, machine)
    machine.shell(f"cp -r {where} /tmp/mine; chmod -R a+rX /tmp/mine")
    done = machine.try_run("runuser", "-u", "pi", "--", "/tmp/mine/install.sh")
    assert (done.returncode, last_line(done)) == (1, "install: only root can install: sudo ./install.sh")
    assert machine.try_run("ls", "/opt/edge-streamer", "/etc/edge-streamer").returncode == 2


async def test_it_asks_for_what_it_cannot_know(machine: Machine, bundle: Path, site: Site) -> None:
    answers = f"{machine.suite}\n{site.broker.address}\n/root/ca.pem\n/root/cert.pem\n/root/key.pem\n/root/jwks.json\n"
    done = install_sh(machine, bundle, "--port", str(site.broker.port), "--hardware-watchdog", answers=answers)
    assert done.returncode == 0, done.stdout
    assert "Device id [" in done.stdout
    assert "ssh -L 8081:127.0.0.1:8081" in last_line(done)
    assert machine.run("stat", "-c", "%U:%G %a", SETTINGS) == "root:edge-streamer 640\n"
    assert "cgroup_enable=memory" in machine.read("/boot/firmware/cmdline.txt")
    assert machine.run("systemctl", "show", "-p", "RuntimeWatchdogUSec", "--value").strip() == "15s"
    wait_for_broker(machine)
    # The clock of the tests' machine is one that nothing disciplines: a token counts only where it is trusted.
    text = machine.read(SETTINGS).replace("[auth]", "[auth]\ntrust_clock = true")
    machine.write("/root/trusting.toml", text)
    assert install_sh(machine, bundle, "--yes", "--settings", "/root/trusting.toml").returncode == 0
    async with watched(site, machine.suite):
        pass


def test_again_it_asks_nothing_and_changes_nothing(machine: Machine, bundle: Path) -> None:
    before = machine.show(SERVICE, "MainPID")
    done = install_sh(machine, bundle)
    assert (done.returncode, machine.show(SERVICE, "MainPID")) == (0, before), done.stdout


def test_with_a_newer_bundle_it_updates(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    newer = changed_bundle(bundle, tmp_path, "2.0.0-newer", lambda _: None)
    settings = machine.read(SETTINGS)
    done = install_sh(machine, newer)
    assert done.returncode == 0, done.stdout
    assert "2.0.0-newer is in force; it was away for" in done.stdout
    assert (current(machine), machine.read(SETTINGS)) == (release_of(newer), settings)
