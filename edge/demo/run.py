"""`edge-streamer demo`: a broker, the daemon, a backend and its page on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import getpass
import http.client
import importlib.util
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.client import CameraClient, Signer
from edge.client.tokens import jwks
from edge.demo.backend import BackendSettings, make_backend
from edge.demo.daemon_process import DEVICE, DaemonOptions, DaemonProcess
from edge.demo.server import serving
from edge.mqtt.settings import MqttSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.client import RemoteCamera

_LOOPBACK = "127.0.0.1"
_START_S = 30.0
_BROKER_MISSING = (
    "the demo's broker, the Python package amqtt, is not installed. It belongs to the extra demo: "
    "pip install 'edge-streamer[demo]'"
)
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  names to compare with


@dataclass(frozen=True, slots=True)
class _Options:
    http_host: str
    http_port: int
    opens_browser: bool
    daemon: DaemonOptions

    @property
    def url(self) -> str:
        return f"http://{_in_url(self.http_host)}:{self.http_port}/"

    @property
    def near_host(self) -> str:
        """The host at which a program on this machine reaches the page."""
        return _ANYWHERE.get(self.http_host, self.http_host)


class _Failed(Exception):
    """The demo cannot continue. The message is for its user."""


def main(arguments: list[str]) -> int:
    """Run the demo until Ctrl-C or SIGTERM. Returns 0, or 1 if it could not start or the daemon ended."""
    options = _options(arguments)
    if importlib.util.find_spec("amqtt") is None:
        print(f"demo: {_BROKER_MISSING}", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.WARNING, format="demo: %(levelname)s %(name)s: %(message)s")
    try:
        with _listener(options) as listener:
            asyncio.run(_demo(options, listener))
    except _Failed as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the demo's options."""
    parser = argparse.ArgumentParser(
        prog="edge-streamer demo",
        description="Run a broker, the daemon, a backend and a page on this machine. Ctrl-C stops all of them.",
        epilog="example:\n  edge-streamer demo --camera synthetic --http-port 8090\n\n"
        "exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 it could not start or the daemon ended, 2 wrong arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--http-host", default=_LOOPBACK, metavar="HOST", help="address of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--http-port", default=8080, type=_port, metavar="PORT", help="port of the page (default: 8080)"
    )
    parser.add_argument(
        "--api-port", default=8081, type=_port, metavar="PORT", help="port of the daemon's local API (default: 8081)"
    )
    parser.add_argument(
        "--mqtt-port", default=1883, type=_port, metavar="PORT", help="port of the broker (default: 1883)"
    )
    parser.add_argument(
        "--camera",
        default="auto",
        type=_camera,
        metavar="SOURCE",
        help="auto, picamera2, synthetic or file:PATH (default: auto)",
    )
    parser.add_argument(
        "--viewers", default=5, type=_in_range(1, 200), metavar="N", help="limit of viewers (default: 5)"
    )
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    return parser


def _options(arguments: list[str]) -> _Options:
    chosen = make_parser().parse_args(arguments)
    daemon = DaemonOptions(chosen.camera, chosen.viewers, chosen.mqtt_port, chosen.api_port)
    return _Options(chosen.http_host, chosen.http_port, not chosen.no_open, daemon)


def _listener(options: _Options) -> socket.socket:
    """The bound socket of the page. All ports are tried, so that one error names all that are in use."""
    sockets = [
        ("--http-port", options.http_host, options.http_port),
        ("--api-port", _LOOPBACK, options.daemon.api_port),
        ("--mqtt-port", _LOOPBACK, options.daemon.mqtt_port),
    ]
    bound: list[socket.socket] = []
    faults = []
    with ExitStack() as stack:
        for option, host, port in sockets:
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
                bound.append(stack.enter_context(socket.create_server((host, port), family=family)))
            except OSError as exc:
                why = "is already in use" if exc.errno == errno.EADDRINUSE else f"cannot be opened ({_why(exc)})"
                faults.append(f"port {port} on {host} {why}; choose another with {option}")
        if faults:
            raise _Failed("; ".join(faults))
        return bound[0].dup()


async def _demo(options: _Options, listener: socket.socket) -> None:
    from edge.demo.broker import EmbeddedBroker  # noqa: PLC0415  its package may be missing

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    mqtt = MqttSettings(host=_LOOPBACK, port=options.daemon.mqtt_port, tls=False, version="3.1.1", reconnect_cap_s=1)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-demo-")))
        await stack.enter_async_context(EmbeddedBroker(_LOOPBACK, options.daemon.mqtt_port))
        client = await stack.enter_async_context(CameraClient.connect(mqtt, "bff-demo"))
        camera = client.camera(DEVICE)
        signer = Signer.generate()
        await stack.enter_async_context(serving(make_backend(camera, signer, BackendSettings()), listener))
        daemon = await DaemonProcess.start(options.daemon, jwks(signer), directory)
        stack.push_async_callback(daemon.stop)
        print(
            f"demo: the daemon is process {daemon.pid}, its own page http://{_LOOPBACK}:{options.daemon.api_port}/",
            file=sys.stderr,
        )
        await _watch(options, camera, daemon, stop)


async def _watch(options: _Options, camera: RemoteCamera, daemon: DaemonProcess, stop: asyncio.Event) -> None:
    """Wait for readiness, and then for a signal or the end of the daemon. Raises: _Failed."""
    stopping = asyncio.create_task(stop.wait(), name="signals")
    dying = asyncio.create_task(daemon.ended(), name="daemon")
    ready = asyncio.create_task(_ready(options, camera), name="ready")
    watched: set[asyncio.Task[object]] = {stopping, dying, ready}
    try:
        while not stopping.done():
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if dying in done and not stopping.done():
                raise _Failed("\n".join([f"the daemon ended with status {dying.result()}:", *daemon.last_lines]))
            if ready in done:
                ready.result()
                _announce(options)
    finally:
        for task in (stopping, dying, ready):
            task.cancel()


async def _ready(options: _Options, camera: RemoteCamera) -> None:
    """Wait until the page answers and the daemon reports over MQTT that it is online. Raises: _Failed."""
    try:
        async with asyncio.timeout(_START_S):
            await asyncio.to_thread(_get_page, options)
            await camera.online()
    except TimeoutError:
        raise _Failed(f"the page or the daemon did not answer within {_START_S:.0f} s") from None
    except (OSError, http.client.HTTPException) as exc:
        raise _Failed(f"the page does not answer: {exc}") from exc


def _get_page(options: _Options) -> None:
    with contextlib.closing(http.client.HTTPConnection(options.near_host, options.http_port, timeout=10)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"the page answers {response.status}")


def _announce(options: _Options) -> None:
    print(f"ready {options.url}", flush=True)
    port = options.http_port
    near = f"http://{_in_url(options.near_host)}:{port}/"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        print(f"This machine has no display. On a computer with a browser run this command, and open {near} there:")
        print(f"  ssh -L {port}:{_in_url(options.near_host)}:{port} {_user()}@{socket.gethostname()}")
        print("The video goes directly from this machine to the browser, not through ssh.", flush=True)
    elif options.opens_browser:
        # In a thread, because some browsers block the call until they exit.
        threading.Thread(target=webbrowser.open, args=(near,), name="browser", daemon=True).start()


def _why(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror) or exc.errno is None:
        return str(exc.strerror or exc)
    # The socket module adds the address to the text of the system.
    return os.strerror(exc.errno).lower()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _camera(text: str) -> str | Path:
    if text in {"auto", "picamera2", "synthetic"}:
        return text
    path = Path(text.removeprefix("file:")).expanduser().absolute()
    if not text.startswith("file:"):
        raise argparse.ArgumentTypeError("one of auto, picamera2, synthetic, file:PATH")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def _in_range(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"a number from {low} to {high}")
        return int(text)

    return number


_port = _in_range(1, 65535)
