"""The real daemon as a process, with a settings file, a log and the local API."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.client.tokens import jwks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge.client import Signer

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def required_auth(signer: Signer, directory: Path) -> dict[str, Any]:
    """The `auth` section of a device that requires this backend's tokens."""
    jwks_file = directory / "jwks.json"
    jwks_file.write_text(jwks(signer))
    # The clock of the test machine may not be synchronized.
    return {"mode": "required", "jwks_file": str(jwks_file), "trust_clock": True}


class Daemon:
    """`edge-streamer run` in its own directory. `code`: the directory of the `edge` package to run."""

    def __init__(
        self,
        directory: Path,
        mqtt: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        code: Path = ROOT,
        **sections: Mapping[str, Any],
    ) -> None:
        self.directory = directory
        self.api_port = free_port()
        self._environment = dict(environment or {})
        self._code = code
        self._log = directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        settings: dict[str, Mapping[str, Any]] = {
            "device": {"id": "cam-1"},
            # The machine of the tests may have a clock that nothing disciplines: the daemon would start `timedatectl`.
            "auth": {"mode": "off", "trust_clock": True},
            "mqtt": mqtt,
            "api": {"port": self.api_port},
            "state": {"dir": str(directory / "state")},
            "camera": {"source": "synthetic"},
        }
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}
        self.config = directory / "edge-streamer.toml"
        self.config.write_text(toml(settings))

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge", "run", "--config", str(self.config)],
                cwd=self._code,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.wait(lambda: self.status() is not None, 20)

    def status(self) -> dict[str, Any] | None:
        """The status, or None if the daemon does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}/api/v1/status", timeout=5) as response:
                status: dict[str, Any] = json.load(response)
                return status
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}/metrics", timeout=5) as response:
            text: str = response.read().decode()
            return text

    def post(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.api_port}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            fields: dict[str, Any] = json.load(response)
            return fields

    def wait(self, condition: Callable[[], object], timeout_s: float = 10) -> None:
        """Wait until a condition holds."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log()}"
            assert time.monotonic() < deadline_s, f"no success within {timeout_s} s; {self.status()}\n{self.log()}"
            time.sleep(0.05)

    def wait_for_status(self, condition: Callable[[dict[str, Any]], object], timeout_s: float = 10) -> None:
        def holds() -> object:
            status = self.status()
            return status is not None and condition(status)

        self.wait(holds, timeout_s)

    def children(self) -> list[int]:
        """The process IDs of the daemon's children: only the camera process."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def stop(self) -> int:
        """Stop with SIGTERM. Returns: the exit status. Fails after ten seconds."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def end(self) -> None:
        """Stop the daemon in any state. Fails if it counted a bug or logged a traceback."""
        if self.process is not None and self.process.poll() is None:
            status = self.status()
            bugs = {name: count for name, count in (status or {}).get("counters", {}).items() if name.endswith("_bugs")}
            assert not bugs, f"{bugs}\n{self.log()}"
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        assert "Traceback" not in self.log(), self.log()
        assert "never retrieved" not in self.log(), self.log()


def toml(sections: Mapping[str, Mapping[str, Any]], prefix: str = "") -> str:
    """Format settings as TOML. Subsections follow the keys of their section."""
    text = ""
    for name, section in sections.items():
        own = {key: value for key, value in section.items() if not isinstance(value, dict)}
        inner = {key: value for key, value in section.items() if isinstance(value, dict)}
        text += f"[{prefix}{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in own.items())
        text += toml(inner, f"{prefix}{name}.")
    return text
