"""The command line."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge import __version__
from edge.core.principal import Scope
from edge.errors import ConfigInvalid
from edge.preflight import check

if TYPE_CHECKING:
    from edge.settings import Settings

EX_CONFIG = 78
_FAULTS_SHOWN = 50
_DEFAULT_CONFIG = Path("/etc/edge-streamer/edge-streamer.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code. Raises: SystemExit: 2 for wrong arguments, 0 after --help."""
    parser = make_parser()
    # The demo has its own parser: argparse's REMAINDER cannot begin with an option.
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command != "demo":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.command == "demo":
        from edge.demo.run import main as run_demo  # noqa: PLC0415  the daemon does not need it

        return run_demo(rest)
    if chosen.command == "token":
        return _token(chosen)
    try:
        return _check_config(chosen.config) if chosen.command == "check-config" else _run(chosen.config)
    except ConfigInvalid as exc:
        for fault in exc.faults[:_FAULTS_SHOWN]:
            print(fault, file=sys.stderr)
        if len(exc.faults) > _FAULTS_SHOWN:
            print(f"and {len(exc.faults) - _FAULTS_SHOWN} more", file=sys.stderr)
        return EX_CONFIG


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands but the demo, which has its own."""
    parser = argparse.ArgumentParser(
        prog="edge-streamer",
        description="Shows one camera live to many browsers over WebRTC.",
        epilog="example:\n  edge-streamer demo\n\n"
        "exit codes: 0 success, 1 failure, 2 wrong arguments, 78 faulty settings.\n"
        "`edge-streamer COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _command(
        commands,
        "run",
        "Run the daemon until SIGTERM or SIGINT.",
        "edge-streamer run --config /etc/edge-streamer/edge-streamer.toml",
        "0 stopped by a signal, 1 a bug (with a traceback), 2 wrong arguments, 78 faulty settings (every fault is\n"
        "printed; systemd does not restart the service)",
    )
    run.add_argument(
        "--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE", help="settings file (default: %(default)s)"
    )
    config = _command(
        commands,
        "check-config",
        "Check a settings file, and the files and directories that it names. Print every fault.\n"
        "Run it on the device as root: other users cannot read the credentials.",
        "sudo edge-streamer check-config /etc/edge-streamer/edge-streamer.toml",
        "0 the daemon starts with these settings, 2 wrong arguments, 78 faulty settings",
    )
    config.add_argument("config", type=Path, metavar="FILE", help="settings file")
    token = _command(
        commands,
        "token",
        "Make keys for a backend, and tokens to test a device.",
        "edge-streamer token keygen --out keys",
        "0 success, 1 failure, 2 wrong arguments",
    )
    _token_arguments(token)
    commands.add_parser("demo", help="Run a broker, the daemon, a backend and a page on this machine", add_help=False)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    description: str,
    example: str,
    exit_codes: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=description.partition(". ")[0].removesuffix("."),
        description=description,
        epilog=f"example:\n  {example}\n\nexit codes: {exit_codes}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    keygen = _command(
        actions,
        "keygen",
        "Make an Ed25519 key pair: private.pem for the backend, and jwks.json for the devices (auth.jwks_file).",
        "edge-streamer token keygen --out keys --kid 2026-11",
        "0 success, 1 a file cannot be written or exists already, 2 wrong arguments",
    )
    keygen.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the new files; existing files are not replaced",
    )
    keygen.add_argument("--kid", metavar="NAME", help="key id (default: a random one)")
    sign = _command(
        actions,
        "sign",
        "Sign a token and print it.",
        "edge-streamer token sign --key keys/private.pem --device cam-1 --sub anna --scope view manage",
        "0 success, 1 the key cannot be used, 2 wrong arguments",
    )
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key in PEM")
    sign.add_argument("--kid", metavar="NAME", help="key id (default: the one in jwks.json beside the key)")
    sign.add_argument("--device", required=True, metavar="ID", help="device id")
    sign.add_argument("--sub", required=True, metavar="NAME", help="name of the viewer")
    sign.add_argument("--client", metavar="NAME", help="reply client that may use the token (default: any)")
    scopes = [scope.value for scope in Scope]
    sign.add_argument(
        "--scope", nargs="+", default=["view"], choices=scopes, help="what the token permits (default: view)"
    )
    sign.add_argument(
        "--ttl-s", type=float, default=300, metavar="S", help="lifetime in seconds (default: %(default)s)"
    )


def _check_config(config: Path) -> int:
    _check(config)
    print(f"{config}: ok")
    return 0


def _check(config: Path) -> Settings:
    settings, warnings = check(config)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return settings


def _run(config: Path) -> int:
    # There is nothing to reload: the public keys are read when their file changes, certificates for each connection.
    # By default, these signals would end the daemon. A handler that somebody installed before stays.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)
    settings = _check(config)
    # Here, because check-config answers without loading the media stack.
    from edge.streaming.lazy_av import av_on_demand  # noqa: PLC0415

    with av_on_demand():
        from edge.daemon import run_daemon  # noqa: PLC0415

    run_daemon(settings)
    return 0


def _token(chosen: argparse.Namespace) -> int:
    from edge.client.tokens import Signer  # noqa: PLC0415  the daemon's start does not wait for it

    try:
        if chosen.action == "keygen":
            key_file, jwks_file = Signer.generate(chosen.kid).save(chosen.out)
            print(
                f"{key_file}: the backend's private key; keep it secret\n{jwks_file}: for the devices, auth.jwks_file"
            )
        else:
            signer = Signer.read(chosen.key, chosen.kid)
            print(signer.sign(chosen.device, chosen.sub, chosen.scope, client=chosen.client, ttl_s=chosen.ttl_s))
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
