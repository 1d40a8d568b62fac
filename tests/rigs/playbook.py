"""Run the playbooks of deploy/ansible against machines over ssh, as an operator runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.rigs.machine import Machine
    from tests.rigs.site import Site

ANSIBLE = Path(__file__).parents[2] / "deploy/ansible"
_SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
_MESSAGE = re.compile(r'"msg": ("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Run:
    """The result of a playbook, by host: how many tasks changed something; which hosts failed or were unreachable."""

    status: int
    output: str
    changed: dict[str, int]
    failed: set[str]
    took_s: float

    def message(self) -> str:
        """The last message, which says why a device failed."""
        found: list[str] = _MESSAGE.findall(self.output)
        return str(json.loads(found[-1])) if found else self.output


class Operator:
    """An inventory of machines, by device id, and the variables of a site. It never reboots a machine by default."""

    def __init__(self, directory: Path, site: Site, bundle: Path, machines: Mapping[str, Machine]) -> None:
        self.directory = directory
        self.site = site
        self.machines = dict(machines)
        self.hosts: dict[str, dict[str, Any]] = {}
        for device, machine in machines.items():
            certificate, key = site.authority.issue(device)
            self.hosts[device] = {
                "ansible_host": machine.address,
                "ansible_ssh_private_key_file": str(machine.ssh_key),
                "edge_streamer_credentials": {"device.pem": certificate.read_text(), "device.key": key.read_text()},
            }
        settings = site.settings("unused")
        del settings["device"]
        self.variables: dict[str, Any] = {
            "ansible_user": "pi",
            "ansible_ssh_common_args": _SSH,
            "edge_streamer_bundle": str(bundle),
            "edge_streamer_settings": settings,
            "edge_streamer_files": {
                "ca.pem": site.authority.ca_file.read_text(),
                "jwks.json": site.jwks_file.read_text(),
            },
            "edge_streamer_reboot": False,
            "edge_streamer_gate_timeout_s": 20,
        }

    def play(
        self, playbook: str, *options: str, serial: list[object] | None = None, timeout_s: float = 500, **variables: Any
    ) -> Run:
        """Run a playbook. `variables` override the inventory's; `serial`, the batches, cannot be in an inventory."""
        inventory = self.directory / "inventory.json"
        inventory.write_text(json.dumps({"cameras": {"hosts": self.hosts, "vars": {**self.variables, **variables}}}))
        if serial is not None:
            options = ("-e", json.dumps({"edge_streamer_serial": serial}), *options)
        program = Path(sys.executable).with_name("ansible-playbook")
        began_s = time.monotonic()
        done = subprocess.run(
            [str(program), "-i", str(inventory), str(ANSIBLE / playbook), *options],
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ANSIBLE,
            timeout=timeout_s,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCAL_TEMP": str(self.directory / "ansible")},
        )
        rows = {host: [int(count) for count in counts] for host, *counts in _RECAP.findall(done.stdout)}
        return Run(
            done.returncode,
            done.stdout,
            {host: changed for host, (_, changed, _, _) in rows.items()},
            {host for host, (_, _, unreachable, failed) in rows.items() if unreachable or failed},
            time.monotonic() - began_s,
        )
