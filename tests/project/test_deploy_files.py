"""The files for devices are consistent: units, scripts, playbooks, the lock."""

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


def test_unit_has_a_low_exposure_score() -> None:
    """A quick check; tests/deploy repeats it on both systemd versions."""
    result = run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)
    assert result.returncode == 0, result.stdout


def test_every_unused_hardening_directive_is_explained() -> None:
    result = run("systemd-analyze", "security", "--offline=true", "--json=short", UNIT)
    page = (ROOT / "docs/hardening.md").read_text()
    names = {row["name"] for row in json.loads(result.stdout) if row["exposure"] and float(row["exposure"]) > 0}
    # DeviceAllow= is explained together with PrivateDevices=.
    directives = {re.split(r"[=:]", name)[0] + "=" for name in names} - {"DeviceAllow="}
    assert {name for name in directives if name not in page and name.removesuffix("=") not in page} == set()


def test_shellcheck_accepts_the_scripts() -> None:
    for script in ("deploy/bundle/install.sh", "dev", "tests/rigs/booted/build.sh", "hw-tests/over_ssh.sh"):
        result = run("shellcheck", "--severity=warning", script)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("playbook", sorted(path.name for path in (DEPLOY / "ansible").glob("*.yml")))
def test_playbook_syntax_is_valid(playbook: str) -> None:
    result = run(BIN / "ansible-playbook", "--syntax-check", playbook, cwd=DEPLOY / "ansible")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_ansible_lint_accepts_the_playbooks() -> None:
    result = run(BIN / "ansible-lint", "--offline", "--profile", "production", "-q", cwd=DEPLOY / "ansible")
    assert (result.returncode, result.stdout) == (0, ""), result.stdout


def test_every_role_variable_is_described_and_validated() -> None:
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert set(defaults) == {name for name, option in options.items() if not option.get("required")}
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
    assert all(option["description"] and option["type"] for option in options.values())


def test_journal_limit_of_the_role_equals_the_host_file() -> None:
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
def test_device_lock_equals_a_fresh_resolution_without_the_demo(python: str, machine: str) -> None:
    """pyproject.toml resolves to the same packages, except those that come from apt."""
    resolve = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", "aws", "-c", "locks/device.txt"]
    platform = ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", "pyproject.toml"]
    result = run(BIN / "uv", *resolve, *platform)
    assert result.returncode == 0, result.stderr
    resolved = {canonicalize_name(Requirement(line).name): line for line in result.stdout.splitlines()}
    environment = {"python_full_version": f"{python}.0", "python_version": python, "platform_machine": machine}
    in_lock = {
        canonicalize_name(one.name): f"{one.name}{one.specifier}"
        for one in locked()
        if one.marker is None or one.marker.evaluate({**environment, "sys_platform": "linux"})
    }
    assert "amqtt" not in in_lock
    assert set(resolved) - set(in_lock) == {"numpy"}
    assert in_lock == {name: line for name, line in resolved.items() if name != "numpy"}
