"""A real coturn on a non-loopback address of this machine, because browsers do not relay to 127.0.0.1."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, TypeVar

import ifaddr

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rigs.namespace import Namespace

T = TypeVar("T")


def own_address() -> str:
    """A non-loopback IPv4 address of this machine."""
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if isinstance(ip.ip, str) and not ip.ip.startswith("127."):
                return ip.ip
    raise RuntimeError("this machine has only loopback addresses")


class Coturn:
    """A server with one user, over UDP and TCP.

    `flags`: more of its options. `secret`: it accepts temporary credentials that were made with this secret
    (`use-auth-secret`), and no user. `namespace`: where it runs; `host` is an address there.
    """

    def __init__(
        self,
        user: str,
        password: str,
        *flags: str,
        secret: str | None = None,
        host: str | None = None,
        namespace: Namespace | None = None,
    ) -> None:
        self.host = host or own_address()
        self._namespace = namespace
        self.port: int = self._call(self._free_port)
        self.credentials = f"{user}:{password}"
        self._secret = secret
        self._flags = flags
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("turnserver")
        assert program, "coturn is not installed"
        options = ["--listening-ip", self.host, "--relay-ip", self.host, "--listening-port", str(self.port)]
        ports = ["--min-port", "41000", "--max-port", "41999"]
        flags = ["-n", "--realm", "test", "--fingerprint", "--no-dtls", "--no-cli"]
        if not any(flag.startswith("--cert") for flag in self._flags):
            flags.append("--no-tls")
        files = ["--log-file", "stdout", "--pidfile", "/dev/null"]
        users = ["--lt-cred-mech", "--user", self.credentials]
        if self._secret is not None:
            users = ["--use-auth-secret", f"--static-auth-secret={self._secret}"]
        command = [program, *flags, *self._flags, *options, *ports, *files, *users]
        self.process = subprocess.Popen(
            command if self._namespace is None else self._namespace.command(*command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            try:
                self._call(lambda: socket.create_connection((self.host, self.port), timeout=1).close())
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("coturn did not start")

    def _free_port(self) -> int:
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            port: int = probe.getsockname()[1]
            return port

    def _call(self, function: Callable[[], T]) -> T:
        return function() if self._namespace is None else self._namespace.call(function)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
