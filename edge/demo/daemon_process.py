"""The daemon as a child process of the demo: settings, log and stop."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEVICE = "demo"

_STOP_S = 3.0
_LOG_S = 0.5
_LAST_LINES = 15
_LINE_LIMIT_BYTES = 64 * 1024
_QUIET = re.compile(r"^\S+ \S+ (DEBUG|INFO) ")
# These belong to the unit of the demo, if it runs under systemd.
_VARIABLES_OF_THE_UNIT = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """The daemon's settings that the demo chooses. `camera`: the name of a source, or the path of a recording."""

    camera: str | Path
    viewers: int
    mqtt_port: int
    api_port: int


def settings_file(options: DaemonOptions, jwks_file: Path, state: Path) -> str:
    """The daemon's settings as TOML."""
    camera = (
        [f"source = {_quoted(options.camera)}"]
        if isinstance(options.camera, str)
        else ['source = "file"', f"path = {_quoted(str(options.camera))}"]
    )
    lines = [
        "[device]",
        f"id = {_quoted(DEVICE)}",
        "[mqtt]",
        'host = "127.0.0.1"',
        f"port = {options.mqtt_port}",
        "tls = false",
        'version = "3.1.1"',
        "[camera]",
        *camera,
        "[sessions]",
        f"max_viewers = {options.viewers}",
        "[ice]",
        "allow_loopback = true",
        "[api]",
        'host = "127.0.0.1"',
        f"port = {options.api_port}",
        "[auth]",
        'mode = "required"',
        f"jwks_file = {_quoted(str(jwks_file))}",
        # Tokens are signed and checked with the same clock here.
        "trust_clock = true",
        "[state]",
        f"dir = {_quoted(str(state))}",
    ]
    return "\n".join(lines) + "\n"


class DaemonProcess:
    """The running daemon. Its warnings go to standard error. `last_lines` explains an unexpected end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process = process
        self._reading = asyncio.create_task(self._read(), name="daemon-log")

    @classmethod
    async def start(cls, options: DaemonOptions, jwks: str, directory: Path) -> DaemonProcess:
        """Start the daemon. Its settings file, public keys and state directory are in `directory`."""
        jwks_file = directory / "jwks.json"
        jwks_file.write_text(jwks)
        config = directory / "edge-streamer.toml"
        config.write_text(settings_file(options, jwks_file, directory / "state"))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge",
            "run",
            "--config",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT_BYTES,
            env={name: value for name, value in os.environ.items() if name not in _VARIABLES_OF_THE_UNIT},
            # Ctrl-C must reach the demo only, which stops its parts in order.
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait for the end of the process and of its log. Returns the exit status, negative for a signal."""
        status = await self._process.wait()
        # Its child process may live a moment longer, and keeps the pipe open.
        await asyncio.wait({self._reading}, timeout=_LOG_S)
        return status

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after a timeout."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._process.wait()
            except TimeoutError:
                print("demo: the daemon did not stop in time", file=sys.stderr)
                self._process.kill()
        await self.ended()
        self._reading.cancel()

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = (await self._process.stderr.readline()).decode(errors="replace").rstrip()
            except ValueError:
                continue  # a line over the limit, which readline dropped
            if not line and self._process.stderr.at_eof():
                return
            self.last_lines.append(line)
            if not _QUIET.match(line):
                print(f"daemon: {line}", file=sys.stderr)


def _quoted(text: str) -> str:
    """The text as a TOML basic string, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _dies_with(parent: int) -> Callable[[], None]:
    """A function for the child: the kernel kills it when the demo dies. It does nothing on other systems than Linux.

    Source: prctl(2).
    """
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return arm
