"""A real mosquitto on a free port: without TLS, with TLS and client certificates, or with user and password."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rigs.certificates import Authority


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A broker process.

    `authority`: use TLS and require client certificates of this authority. `identity`: the broker's certificate and
    key. `user`: (name, password). `access`: lines of an access list; users are the common names of certificates.
    """

    def __init__(
        self,
        directory: Path,
        *,
        authority: Authority | None = None,
        identity: tuple[Path, Path] | None = None,
        user: tuple[str, str] | None = None,
        access: str | None = None,
        persistence: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        self.address = address
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"listener {self.port} {address}", "user root", f"allow_anonymous {str(user is None).lower()}"]
        lines += ["max_queued_messages 10000", "set_tcp_nodelay true"]
        if authority is not None:
            certificate, key = identity or authority.issue("broker")
            lines += [f"cafile {authority.ca_file}", f"certfile {certificate}", f"keyfile {key}"]
            lines += ["require_certificate true", "use_identity_as_username true"]
        if user is not None:
            passwords = directory / "passwords"
            subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), *user], check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if access is not None:
            (directory / "access").write_text(access)
            lines.append(f"acl_file {directory}/access")
        if persistence:
            lines += ["persistence true", f"persistence_location {directory}/", "autosave_on_changes true"]
            lines.append("autosave_interval 1")
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")

    def settings(self, **more: Any) -> dict[str, Any]:
        """Arguments of MqttSettings for a client of this broker, without the client's identity."""
        return {"host": self.address, "port": self.port, **more}

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        log = (self._directory / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        for _ in range(200):
            try:
                socket.create_connection((self.address, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError((self._directory / "mosquitto.log").read_text())

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Keep connections open without answering: half-open links."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None
