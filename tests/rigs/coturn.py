"""A real coturn on an address of this machine that is not loopback: browsers do not relay to 127.0.0.1."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

import ifaddr


def own_address() -> str:
    """An IPv4 address of this machine that other hosts could use."""
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if isinstance(ip.ip, str) and not ip.ip.startswith("127."):
                return ip.ip
    raise RuntimeError("this machine has no address but loopback")


class Coturn:
    """One server with one user, UDP and TCP."""

    def __init__(self, user: str, password: str) -> None:
        self.host = own_address()
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port: int = probe.getsockname()[1]
        self._credentials = f"{user}:{password}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("turnserver")
        assert program, "coturn is not installed"
        options = ["--listening-ip", self.host, "--relay-ip", self.host, "--listening-port", str(self.port)]
        ports = ["--min-port", "41000", "--max-port", "41999"]
        flags = ["-n", "--realm", "test", "--fingerprint", "--no-tls", "--no-dtls", "--no-cli", "--lt-cred-mech"]
        files = ["--log-file", "stdout", "--pidfile", "/dev/null"]
        self.process = subprocess.Popen(
            [program, *flags, *options, *ports, *files, "--user", self._credentials],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("coturn did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
