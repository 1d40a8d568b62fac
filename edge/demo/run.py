"""`edge-streamer demo`: a broker, the daemon, a backend-for-frontend and its page, on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import http.client
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
from edge.demo.broker import EmbeddedBroker
from edge.demo.daemon_process import DEVICE, DaemonOptions, DaemonProcess
from edge.demo.server import serving
from edge.mqtt.settings import MqttSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.client import Camera

_LOOPBACK = "127.0.0.1"
_START_S = 30.0
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
        """Where a program on this machine reaches the page."""
        return _ANYWHERE.get(self.http_host, self.http_host)


class _Failed(Exception):
    """The demo cannot go on; the message is for a person."""


def main(arguments: list[str]) -> int:
    """Run the demo until Ctrl-C or SIGTERM. 0, or 1 where it could not start or the daemon died."""
    options = _options(arguments)
    logging.basicConfig(level=logging.WARNING, format="demo: %(levelname)s %(name)s: %(message)s")
    try:
        with _listener(options) as listener:
            asyncio.run(_demo(options, listener))
    except _Failed as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: list[str]) -> _Options:
    parser = argparse.ArgumentParser(
        prog="edge-streamer demo",
        description="A broker, the daemon, a backend and a page on this machine. Ctrl-C ends all of it.",
    )
    parser.add_argument("--http-host", default=_LOOPBACK, metavar="HOST", help="of the page (default: %(default)s)")
    parser.add_argument("--http-port", default=8080, type=_port, metavar="PORT", help="of the page (default: 8080)")
    parser.add_argument("--api-port", default=8081, type=_port, metavar="PORT", help="of the daemon (default: 8081)")
    parser.add_argument("--mqtt-port", default=1883, type=_port, metavar="PORT", help="of the broker (default: 1883)")
    parser.add_argument(
        "--camera", default="auto", type=_camera, metavar="auto|picamera2|synthetic|file:PATH", help="(default: auto)"
    )
    parser.add_argument("--viewers", default=5, type=_in_range(1, 200), metavar="N", help="how many may watch at once")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    chosen = parser.parse_args(arguments)
    daemon = DaemonOptions(chosen.camera, chosen.viewers, chosen.mqtt_port, chosen.api_port)
    return _Options(chosen.http_host, chosen.http_port, not chosen.no_open, daemon)


def _listener(options: _Options) -> socket.socket:
    """The page's socket, bound; the other ports were free a moment ago, so that all that are taken are told at once."""
    wanted = [
        ("--http-port", options.http_host, options.http_port),
        ("--api-port", _LOOPBACK, options.daemon.api_port),
        ("--mqtt-port", _LOOPBACK, options.daemon.mqtt_port),
    ]
    bound: list[socket.socket] = []
    faults = []
    with ExitStack() as stack:
        for option, host, port in wanted:
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
                bound.append(stack.enter_context(socket.create_server((host, port), family=family)))
            except OSError as exc:
                faults.append(f"{option} {port} on {host} cannot be had ({_why(exc)})")
        if faults:
            raise _Failed("; ".join(faults))
        return bound[0].dup()


async def _demo(options: _Options, listener: socket.socket) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
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
        await _watch(options, camera, daemon, asked)


async def _watch(options: _Options, camera: Camera, daemon: DaemonProcess, asked: asyncio.Event) -> None:
    """From the start of all parts until it is asked to end. Raises: _Failed."""
    stopping = asyncio.create_task(asked.wait(), name="signals")
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
                _tell(options)
    finally:
        for task in (stopping, dying, ready):
            task.cancel()


async def _ready(options: _Options, camera: Camera) -> None:
    """Until the page answers and the daemon says over MQTT that it is there. Raises: _Failed."""
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


def _tell(options: _Options) -> None:
    print(f"ready {options.url}", flush=True)
    port = options.http_port
    near = f"http://{_in_url(options.near_host)}:{port}/"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        print(f"There is no display here. On a computer with a browser run this, and open {near} there:")
        print(f"  ssh -L {port}:{_in_url(options.near_host)}:{port} {_user()}@{socket.gethostname()}")
        print("The video itself goes directly from this machine to the browser, not through ssh.", flush=True)
    elif options.opens_browser:
        # In a thread: a program that opens it may keep the call until it ends.
        threading.Thread(target=webbrowser.open, args=(near,), name="browser", daemon=True).start()


def _why(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror) or exc.errno is None:
        return str(exc.strerror or exc)
    # The socket module adds the address to the system's words.
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
