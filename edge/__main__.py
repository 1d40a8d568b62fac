"""The command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge import __version__
from edge.errors import ConfigInvalid
from edge.settings import load_settings

EX_CONFIG = 78
_DEFAULT_CONFIG = Path("/etc/edge-streamer/edge-streamer.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 78 where the settings are at fault, so that systemd does not restart."""
    parser = argparse.ArgumentParser(prog="edge-streamer", description="One camera, shown live to many over WebRTC.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the daemon")
    run.add_argument("--config", type=Path, default=_DEFAULT_CONFIG, help="the settings file (default: %(default)s)")
    check = commands.add_parser("check-config", help="say what is wrong with a settings file")
    check.add_argument("config", type=Path, metavar="FILE")
    demo = commands.add_parser(
        "demo", help="a broker, the daemon, a backend and a page on this machine", add_help=False
    )
    demo.add_argument("rest", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)

    if chosen.command == "demo":
        from edge.demo.run import main as run_demo  # noqa: PLC0415  the daemon does not carry the demo's packages

        return run_demo(chosen.rest)
    try:
        settings = load_settings(chosen.config)
        if chosen.command == "check-config":
            print(f"{chosen.config}: ok")
            return 0
        from edge.daemon import run_daemon  # noqa: PLC0415  check-config answers without loading the media stack

        run_daemon(settings)
    except ConfigInvalid as exc:
        for fault in exc.faults:
            print(fault, file=sys.stderr)
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
