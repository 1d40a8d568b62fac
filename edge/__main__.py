"""The command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge import __version__
from edge.core.principal import Scope
from edge.errors import ConfigInvalid
from edge.settings import absent_files, load_settings

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
    token = commands.add_parser("token", help="make a backend's keys, and tokens to try a device with")
    _token_arguments(token)
    commands.add_parser("demo", help="a broker, the daemon, a backend and a page on this machine", add_help=False)
    # The demo's options are its own; argparse's REMAINDER does not begin with one.
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command != "demo":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    if chosen.command == "demo":
        from edge.demo.run import main as run_demo  # noqa: PLC0415  the daemon does not carry the demo's packages

        return run_demo(rest)
    if chosen.command == "token":
        return _token(chosen)
    try:
        settings = load_settings(chosen.config)
        if chosen.command == "check-config":
            for fault in absent_files(settings):
                print(f"warning: {fault}", file=sys.stderr)
            print(f"{chosen.config}: ok")
            return 0
        from edge.daemon import run_daemon  # noqa: PLC0415  check-config answers without loading the media stack

        run_daemon(settings)
    except ConfigInvalid as exc:
        for fault in exc.faults:
            print(fault, file=sys.stderr)
        return EX_CONFIG
    return 0


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    keygen = actions.add_parser("keygen", help="an Ed25519 key pair: the private key, and jwks.json for the devices")
    keygen.add_argument("--out", type=Path, required=True, metavar="DIR", help="where neither file is yet")
    keygen.add_argument("--kid", metavar="NAME", help="the key's name (default: one that is made up)")
    sign = actions.add_parser("sign", help="print a token")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key, in PEM")
    sign.add_argument("--kid", metavar="NAME", help="the key's name (default: as in the jwks.json beside it)")
    sign.add_argument("--device", required=True, metavar="ID", help="the device that it is for")
    sign.add_argument("--sub", required=True, metavar="NAME", help="the viewer")
    sign.add_argument("--client", metavar="NAME", help="the reply client that may use it (default: any)")
    scopes = [scope.value for scope in Scope]
    sign.add_argument("--scope", nargs="+", default=["view"], choices=scopes, help="(default: view)")
    sign.add_argument(
        "--ttl-s", type=float, default=300, metavar="S", help="how long it is good (default: %(default)s)"
    )


def _token(chosen: argparse.Namespace) -> int:
    from edge.client.tokens import Signer  # noqa: PLC0415  the daemon's start does not wait for it

    try:
        if chosen.action == "keygen":
            key_file, jwks_file = Signer.generate(chosen.kid).save(chosen.out)
            print(f"{key_file}: the backend's, a secret\n{jwks_file}: for the devices, auth.jwks_file")
        else:
            signer = Signer.read(chosen.key, chosen.kid)
            print(signer.sign(chosen.device, chosen.sub, chosen.scope, client=chosen.client, ttl_s=chosen.ttl_s))
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
