"""The daemon as a child of the demo: its settings, its log, its end."""

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
# The demo may itself run under systemd, but the daemon is not that unit.
_NOT_ITS_OWN = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What the demo decides of the daemon's settings. `camera`: a source's name, or the path of a recording."""

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
        "[api]",
        'host = "127.0.0.1"',
        f"port = {options.api_port}",
        "[auth]",
        'mode = "required"',
        f"jwks_file = {_quoted(str(jwks_file))}",
        # Who signs and who checks look at the same clock here.
        "trust_clock = true",
        "[state]",
        f"dir = {_quoted(str(state))}",
    ]
    return "\n".join(lines) + "\n"


class DaemonProcess:
    """The running daemon. Its warnings go to standard error; its last lines are kept for when it dies."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process = process
        self._reading = asyncio.create_task(self._read(), name="daemon-log")

    @classmethod
    async def start(cls, options: DaemonOptions, jwks: str, directory: Path) -> DaemonProcess:
        """Start the daemon with a settings file, its backend's keys and a state directory in `directory`."""
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
            env={name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN},
            # A Ctrl-C at the terminal is the demo's to pass on, in its order.
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end, and a moment for the last of its log. The exit status, negative for a signal."""
        status = await self._process.wait()
        # A process of its own may outlive it for a moment, and holds the pipe.
        await asyncio.wait({self._reading}, timeout=_LOG_S)
        return status

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it in time."""
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
                continue  # longer than the limit: readline has dropped it
            if not line and self._process.stderr.at_eof():
                return
            self.last_lines.append(line)
            if not _QUIET.match(line):
                print(f"daemon: {line}", file=sys.stderr)


def _quoted(text: str) -> str:
    """As a TOML basic string, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _dies_with(parent: int) -> Callable[[], None]:
    """For the child, before it becomes the daemon: a demo that is killed takes the daemon with it.

    Source: prctl(2). Elsewhere than on Linux the daemon is left.
    """
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return arm
