"""What is shipped to devices holds together: units, scripts, playbooks, the lock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/edge-streamer.service"
ROLE = DEPLOY / "ansible/roles/edge_streamer"
BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=timeout_s,
    )


def test_the_unit_is_confined() -> None:
    """Again on both systemds in tests/deploy; here at every change."""
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)
    assert done.returncode == 0, done.stdout


def test_every_directive_that_is_off_is_explained() -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--json=short", UNIT)
    page = (ROOT / "docs/hardening.md").read_text()
    names = {row["name"] for row in json.loads(done.stdout) if row["exposure"] and float(row["exposure"]) > 0}
    words = {re.split(r"[=:]", name)[0] + "=" for name in names} - {"DeviceAllow="}  # explained beside PrivateDevices=
    assert {word for word in words if word not in page and word.removesuffix("=") not in page} == set()


def test_the_scripts_are_clean() -> None:
    for script in ("deploy/bundle/install.sh", "dev", "tests/rigs/booted/build.sh", "hw-tests/over_ssh.sh"):
        done = run("shellcheck", "--severity=warning", script)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("playbook", sorted(path.name for path in (DEPLOY / "ansible").glob("*.yml")))
def test_the_playbooks_syntax_holds(playbook: str) -> None:
    done = run(BIN / "ansible-playbook", "--syntax-check", playbook, cwd=DEPLOY / "ansible")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ansible_lint_finds_nothing() -> None:
    done = run(BIN / "ansible-lint", "--offline", "--profile", "production", "-q", cwd=DEPLOY / "ansible")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_every_variable_is_described_and_validated() -> None:
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert set(defaults) == {name for name, option in options.items() if not option.get("required")}
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
    assert all(option["description"] and option["type"] for option in options.values())


def test_the_host_options_say_the_same_in_both_ways() -> None:
    journal = (DEPLOY / "host/journald.conf").read_text()
    tasks = yaml.safe_load((ROLE / "tasks/host.yml").read_text())
    content = next(task["ansible.builtin.copy"]["content"] for task in tasks if task["name"] == "Limit the journal")
    assert content.replace("{{ edge_streamer_journald_max_use }}", "200M") == journal


def locked() -> list[Requirement]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "locks/device.txt").read_text())
    return [Requirement(line.split("--hash=")[0]) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_the_devices_lock_has_all_that_the_project_needs_and_nothing_of_the_demo(python: str, machine: str) -> None:
    """Resolved anew from pyproject.toml: the same packages, but for those that apt brings."""
    resolve = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", "aws", "-c", "locks/device.txt"]
    platform = ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", "pyproject.toml"]
    done = run(BIN / "uv", *resolve, *platform)
    assert done.returncode == 0, done.stderr
    resolved = {canonicalize_name(Requirement(line).name): line for line in done.stdout.splitlines()}
    environment = {"python_full_version": f"{python}.0", "python_version": python, "platform_machine": machine}
    held = {
        canonicalize_name(one.name): f"{one.name}{one.specifier}"
        for one in locked()
        if one.marker is None or one.marker.evaluate({**environment, "sys_platform": "linux"})
    }
    assert "amqtt" not in held
    assert set(resolved) - set(held) == {"numpy"}
    assert held == {name: line for name, line in resolved.items() if name != "numpy"}
