"""The rig of booted machines works as the other tests of this directory assume."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.rigs.machine import Machine, Network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.parametrize(("suite", "version"), [("bookworm", "252"), ("trixie", "257")])
def test_a_machine_boots_and_is_reached_by_ssh(network: Network, suite: str, version: str) -> None:
    with Machine(network, suite, f"pi-{suite}") as machine:
        assert machine.run("systemctl", "--version").startswith(f"systemd {version} ")
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        command = ["ssh", "-i", str(machine.ssh_key), *options, f"pi@{machine.address}", "sudo id -un"]
        assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "root\n"
        machine.run("apt-get", "-qq", "install", "-y", "--no-install-recommends", "hello")
        machine.shell("echo kept >/root/kept; sync")
        machine.cut()
        machine.boot()
        assert machine.read("/root/kept") == "kept\n"
        machine.reboot()
        assert machine.read("/root/kept") == "kept\n"


def test_a_disk_can_be_full_and_fail(network: Network) -> None:
    with Machine(network, "trixie", "small", disk_mb=200) as machine:
        machine.fill_disk()
        assert "No space left" in machine.try_run("sh", "-c", "echo much >/root/file").stdout
        machine.free_disk()
        machine.shell("echo much >/root/file")
        machine.break_disk()
        assert "Read-only file system" in machine.try_run("sh", "-c", "echo more >/root/other").stdout
