"""Machines with the daemon installed from a bundle, as on an operator's device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.rigs.daemon import toml
from tests.rigs.machine import Machine, Network
from tests.rigs.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
SETTINGS = "/etc/edge-streamer/edge-streamer.toml"


def make_bundle(directory: Path, *arguments: str, architecture: str = "amd64") -> Path:
    """Make a bundle. The booted machines have the architecture of this machine, amd64."""
    make = [sys.executable, str(ROOT / "deploy/bundle/make.py"), "--arch", architecture]
    done = subprocess.run(
        [*make, "--out", str(directory), *arguments], check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def release_of(bundle: Path) -> str:
    return bundle.stem.removeprefix("edge-streamer-").rpartition("-")[0]


def unpack(bundle: Path, machine: Machine, directory: str = "/root/bundle") -> str:
    """Unpack a bundle on the machine; return its directory there."""
    there = machine.root / directory.lstrip("/")
    there.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xf", bundle, "-C", there], check=True)
    return f"{directory}/{bundle.stem}"


def edge_release(machine: Machine, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run edge-release; return its JSON, with its messages as `words`."""
    done = machine.try_run(
        "sh", "-c", 'edge-release "$@" --json 2>/tmp/words || echo "$?" >/tmp/status', "sh", *arguments
    )
    ended = machine.try_run("sh", "-c", "cat /tmp/status 2>/dev/null; rm -f /tmp/status").stdout.strip() or "0"
    words = machine.read("/tmp/words")
    assert ended == str(status), f"{arguments}: {ended}\n{done.stdout}\n{words}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "words": words}


def install(machine: Machine, bundle: Path, site: Site, device: str, more: Mapping[str, Any] | None = None) -> None:
    """Install and start the service by hand."""
    there = unpack(bundle, machine)
    machine.run(f"{there}/edge-release", "install", there)
    site.provision(machine, device)
    machine.write("/root/settings.toml", toml(site.settings(device, more)))
    edge_release(machine, "apply", "--release", release_of(bundle), "--settings", "/root/settings.toml")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def site(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), network.host) as site:
        yield site
