"""The role's firewall option on booted machines: what arrives before and after a reboot, and its removal."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.rigs.machine import Machine
from tests.rigs.playbook import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rigs.machine import Network
    from tests.rigs.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNIT = "edge-streamer-firewall.service"
MDNS = "224.0.0.251"
PORTS = {"inside": 50005, "outside": 50100, "unicast": 5353}
# Collects what arrives, until the datagram to the open port has arrived three times.
RECEIVER = """
import json, select, socket, sys
sockets = []
for port in json.loads(sys.argv[1]).values():
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sockets[-1].bind(("", port))
group = socket.inet_aton(sys.argv[2]) + socket.inet_aton(sys.argv[3])
sockets[-1].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
arrived = []
while arrived.count("inside") < 3:
    ready = select.select(sockets, [], [], 20)[0] or sys.exit("nothing arrived")
    arrived += [one.recv(100).decode() for one in ready]
print(json.dumps(sorted(set(arrived))))
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, network: Network) -> Iterator[Machine]:
    with Machine(network, request.param, f"firewall-{request.param}") as machine:
        yield machine


@pytest.fixture(scope="module")
def operator(machine: Machine, site: Site, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operator"), site, bundle, {machine.suite: machine})


def arriving(machine: Machine, network: Network) -> set[str]:
    """Send datagrams to the machine's ports and to multicast DNS; return which ones arrive."""
    with ThreadPoolExecutor(1) as pool, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(network.host))
        program = ("python3", "-c", RECEIVER, json.dumps(PORTS), MDNS, machine.address)
        receiver = pool.submit(machine.run, *program, timeout_s=60)
        while not receiver.done():
            for name in ("outside", "unicast"):
                sender.sendto(name.encode(), (machine.address, PORTS[name]))
            sender.sendto(b"multicast", (MDNS, 5353))
            sender.sendto(b"inside", (machine.address, PORTS["inside"]))
            time.sleep(0.05)
        return set(json.loads(receiver.result()))


def connects(machine: Machine, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((machine.address, port)) == 0


def test_firewall_lets_in_the_ports_of_the_settings_only_until_it_is_off_again(
    machine: Machine, operator: Operator, network: Network
) -> None:
    own = operator.variables["edge_streamer_settings"]
    ports = {**own.get("ice", {}), "udp_port_min": 50000, "udp_port_max": 50099}
    on: dict[str, Any] = {
        "edge_streamer_firewall": "yes",  # as `-e` passes it
        "edge_streamer_settings": {**own, "ice": ports},
    }
    # Ansible connects to a port that edge_streamer_firewall_tcp_ports does not name.
    machine.write("/etc/ssh/sshd_config.d/port.conf", "Port 22\nPort 2222\n")
    machine.run("systemctl", "restart", "ssh")
    operator.hosts[machine.suite]["ansible_port"] = 2222
    run = operator.play("install.yml", edge_streamer_firewall=True)
    assert "set ice.udp_port_min and ice.udp_port_max in edge_streamer_settings" in run.message()
    assert machine.try_run("ls", "/etc/edge-streamer").returncode == 2
    run = operator.play("install.yml", "--check", "--diff", **on)
    assert run.status == 0, run.output
    assert "+    udp dport 50000-50099 accept" in run.output
    assert machine.try_run("ls", "/etc/edge-streamer").returncode == 2
    run = operator.play("install.yml")
    assert run.status == 0, run.output
    assert machine.try_run("ls", f"/etc/systemd/system/{UNIT}").returncode == 2
    assert arriving(machine, network) == {"inside", "outside", "unicast", "multicast"}

    run = operator.play("install.yml", "--tags", "packages,settings", edge_streamer_firewall_tcp_ports=[], **on)
    assert run.status == 0, run.output
    assert arriving(machine, network) == {"inside", "multicast"}
    assert (connects(machine, 2222), connects(machine, 22)) == (True, False)
    for options in (["--check"], []):
        run = operator.play("install.yml", *options, edge_streamer_firewall_tcp_ports=[], **on)
        assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    # A change replaces the rules.
    assert operator.play("install.yml", "--tags", "firewall", **on).changed == {machine.suite: 2}
    assert (connects(machine, 2222), connects(machine, 22)) == (True, True)
    assert machine.run("nft", "list", "tables") == "table inet edge_streamer\n"

    machine.reboot()
    assert arriving(machine, network) == {"inside", "multicast"}
    assert "network-pre.target" in machine.show(UNIT, "Before")
    run = operator.play("install.yml", "--tags", "firewall", **on)
    assert (run.status, run.changed) == (0, {machine.suite: 0}), run.output
    # The system's own rules, whose file flushes all tables, come and go without ours.
    both = "table inet filter\ntable inet edge_streamer\n"
    machine.run("systemctl", "stop", "nftables.service")
    for verb in ("start", "restart", "reload"):
        machine.run("systemctl", verb, "nftables.service")  # does not wait for our unit
        machine.wait(lambda: machine.run("nft", "list", "tables") == both, 20, f"the tables after {verb}")

    run = operator.play("install.yml", "--check", "--tags", "firewall")
    assert (run.status, run.changed) == (0, {machine.suite: 2}), run.output
    run = operator.play("install.yml", "--tags", "firewall")
    assert run.status == 0, run.output
    assert machine.run("nft", "list", "tables") == "table inet filter\n"
    assert machine.try_run("systemctl", "cat", UNIT).returncode == 1
    assert arriving(machine, network) == {"inside", "outside", "unicast", "multicast"}
    assert operator.play("install.yml", "--tags", "firewall").changed == {machine.suite: 0}


def test_uninstalling_removes_the_firewall(machine: Machine, operator: Operator) -> None:
    own = operator.variables["edge_streamer_settings"]
    ports = {**own.get("ice", {}), "udp_port_min": 50000, "udp_port_max": 50099}
    settings = {**own, "ice": ports}
    run = operator.play("install.yml", edge_streamer_firewall=True, edge_streamer_settings=settings)
    assert run.status == 0, run.output
    assert "table inet edge_streamer" in machine.run("nft", "list", "tables")
    run = operator.play("uninstall.yml")
    assert run.status == 0, run.output
    assert "edge_streamer" not in machine.run("nft", "list", "tables")
    assert machine.try_run("systemctl", "cat", UNIT).returncode == 1
    assert machine.try_run("ls", "/etc/edge-streamer-firewall.nft").returncode == 2
