"""edge-release: install, switch, roll back and remove releases of edge-streamer on this device.

Needs root. Messages go to standard error; with --json, one JSON object goes to standard output.
Exit status: 0 done, or nothing to do; 1 refused, nothing changed; 2 wrong arguments; 3 tried and taken back, the device
runs as before; 4 tried, and the daemon does not run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_release.bundle import check, remove_interrupted, unpacked
from edge_release.files import Refused, log, reason_of
from edge_release.layout import (
    CURRENT,
    INSTALL_PREFIX,
    LOCK,
    MAX_TIMEOUT_S,
    MIN_TIMEOUT_S,
    PREVIOUS,
    PUBLIC_KEY,
    SWITCH,
)
from edge_release.releases import install, installed, link, uninstall
from edge_release.switch import apply, resume, rollback, run_switch

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="edge-release", description="Releases of edge-streamer on this device.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    bundle = argparse.ArgumentParser(add_help=False)
    bundle.add_argument("bundle", type=Path, help="a bundle, as a tar file or unpacked")
    bundle.add_argument("--public-key", type=Path, help=f"require a signature (default: {PUBLIC_KEY}, if it exists)")
    timeout = argparse.ArgumentParser(add_help=False)
    timeout.add_argument("--timeout-s", type=timeout_s, default=120, metavar="S", help="for a picture (default: 120)")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", parents=[bundle, common], help="check whether this machine can run a bundle")
    command.add_argument("--without-packages", action="store_true", help="do not check for the packages from apt")
    commands.add_parser("install", parents=[bundle, common], help="install a bundle beside the running release")
    text = "put a release and settings in force; go back if they do not work"
    command = commands.add_parser("apply", parents=[timeout, common], help=text)
    command.add_argument("--release", help="default: the current one")
    command.add_argument("--settings", type=Path, metavar="FILE", help="default: those in force")
    command.add_argument("--restart", action="store_true", help="restart even if nothing has changed")
    commands.add_parser("rollback", parents=[timeout, common], help="go back to the previous release")
    commands.add_parser("list", parents=[common], help="the releases on this device")
    command = commands.add_parser("uninstall", parents=[common], help="remove the daemon; keep settings and state")
    command.add_argument("--purge", action="store_true", help="remove settings, keys, state and user, too")
    commands.add_parser("resume", parents=[common], help="only for the switch service")
    chosen = parser.parse_args(arguments)
    os.umask(0o022)  # the daemon's user must be able to read the release
    try:
        status, result = carry_out(chosen)
    except Refused as exc:
        log(str(exc))
        status, result = 1, {"changed": False, "outcome": "refused", "reason": str(exc)}
    except (OSError, subprocess.SubprocessError) as exc:
        log(reason_of(exc))
        status, result = 1, {"changed": False, "outcome": "refused", "reason": reason_of(exc)}
    if chosen.json:
        print(json.dumps(result))
    return status


def carry_out(chosen: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    if chosen.command == "list":
        result = {"current": link(CURRENT), "previous": link(PREVIOUS), "releases": installed()}
        log(f"current {result['current']}, previous {result['previous']}, installed {', '.join(installed()) or 'none'}")
        return 0, result
    if chosen.command == "check":
        with unpacked(chosen.bundle) as bundle:
            description = check(bundle, public_key(chosen), packages=not chosen.without_packages)
        log(f"this machine can run {description['release']}")
        return 0, description
    if os.geteuid() != 0:
        raise Refused("only root may do this: use sudo")
    # An `apply` that waits for the switch service holds the lock.
    with contextlib.nullcontext() if chosen.command == "resume" else one_at_a_time():
        return change(chosen)


def change(chosen: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    if chosen.command == "resume":
        return resume(), {}
    if SWITCH.exists() and chosen.command != "uninstall":
        log("a switch was interrupted: finishing it first")
        run_switch()
    remove_interrupted()
    if chosen.command == "install":
        with unpacked(chosen.bundle, INSTALL_PREFIX) as bundle:
            return 0, install(bundle, public_key(chosen))
    if chosen.command == "apply":
        return apply(chosen.release, chosen.settings, restart=chosen.restart, timeout_s=chosen.timeout_s)
    if chosen.command == "rollback":
        return rollback(chosen.timeout_s)
    return 0, uninstall(purge=chosen.purge)


def timeout_s(text: str) -> float:
    value = float(text)
    if not MIN_TIMEOUT_S <= value <= MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text} is not between {MIN_TIMEOUT_S:.0f} and {MAX_TIMEOUT_S:.0f}")
    return value


def public_key(chosen: argparse.Namespace) -> Path | None:
    return chosen.public_key.absolute() if chosen.public_key else (PUBLIC_KEY if PUBLIC_KEY.exists() else None)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Refused("another edge-release is running: try again when it has finished") from exc
        yield


if __name__ == "__main__":
    sys.exit(main())
