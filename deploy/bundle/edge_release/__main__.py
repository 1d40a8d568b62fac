"""edge-release: install, switch, roll back and remove releases of edge-streamer on this device.

Needs root. Words go to standard error; with --json, one JSON object goes to standard output.
Exit status: 0 done, or nothing to do; 1 refused, nothing changed; 2 wrong arguments; 3 tried, and the device runs as
before; 4 tried, and the device could not be brought back.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_release.bundle import check, remove_interrupted, unpacked
from edge_release.files import Refused, log
from edge_release.layout import CURRENT, INSTALL_PREFIX, LOCK, PREVIOUS, PUBLIC_KEY
from edge_release.releases import install, installed, link, uninstall
from edge_release.switch import apply, resume, rollback

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="edge-release", description="Releases of edge-streamer on this device.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    bundle = argparse.ArgumentParser(add_help=False)
    bundle.add_argument("bundle", type=Path, help="a bundle, as a tar file or unpacked")
    bundle.add_argument("--public-key", type=Path, help=f"ask for a signature (default: {PUBLIC_KEY} where it is)")
    timeout = argparse.ArgumentParser(add_help=False)
    timeout.add_argument("--timeout-s", type=float, default=120, metavar="S", help="for a picture (default: 120)")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", parents=[bundle, common], help="say whether this machine takes a bundle")
    command.add_argument("--without-packages", action="store_true", help="do not ask for the packages of apt")
    commands.add_parser("install", parents=[bundle, common], help="install a bundle beside what runs")
    text = "put a release and settings in force; go back if they do not work"
    command = commands.add_parser("apply", parents=[timeout, common], help=text)
    command.add_argument("--release", help="default: the current one")
    command.add_argument("--settings", type=Path, metavar="FILE", help="default: those in force")
    command.add_argument("--restart", action="store_true", help="also when nothing is new, for new certificates")
    commands.add_parser("rollback", parents=[timeout, common], help="go back to the previous release")
    commands.add_parser("list", parents=[common], help="the releases on this device")
    command = commands.add_parser("uninstall", parents=[common], help="remove the daemon; keep settings and state")
    command.add_argument("--purge", action="store_true", help="remove settings, keys, state and user, too")
    commands.add_parser("resume", parents=[common], help="for the switch service alone")
    chosen = parser.parse_args(arguments)
    try:
        status, result = carry_out(chosen)
    except Refused as exc:
        log(str(exc))
        status, result = 1, {"changed": False, "outcome": "refused", "reason": str(exc)}
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
        log(f"this machine takes {description['release']}")
        return 0, description
    if os.geteuid() != 0:
        raise Refused("only root may do this: use sudo")
    # The switch service works for an `apply` that waits for it, and that holds the lock.
    with contextlib.nullcontext() if chosen.command == "resume" else one_at_a_time():
        return change(chosen)


def change(chosen: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    remove_interrupted()
    if chosen.command == "install":
        with unpacked(chosen.bundle, INSTALL_PREFIX) as bundle:
            return 0, install(bundle, public_key(chosen))
    if chosen.command == "apply":
        return apply(chosen.release, chosen.settings, restart=chosen.restart, timeout_s=chosen.timeout_s)
    if chosen.command == "rollback":
        return rollback(chosen.timeout_s)
    if chosen.command == "resume":
        return resume(), {}
    return 0, uninstall(purge=chosen.purge)


def public_key(chosen: argparse.Namespace) -> Path | None:
    return chosen.public_key.absolute() if chosen.public_key else (PUBLIC_KEY if PUBLIC_KEY.exists() else None)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Refused("another edge-release is at work: try again when it is done") from exc
        yield


if __name__ == "__main__":
    sys.exit(main())
