"""A network namespace with chosen interfaces, for the sockets of one test. Needs root."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_CLONE_NEWNET = 0x4000_0000
_numbers = itertools.count()


class Namespace:
    """A network namespace, which the context manager makes and removes."""

    def __init__(self) -> None:
        self.name = f"edge-{os.getpid()}-{next(_numbers)}"

    def add_interface(self, name: str, *addresses: str) -> None:
        """Add an interface with addresses such as `10.0.0.2/24`. What is sent to others is lost."""
        self.ip("link", "add", name, "type", "bridge")
        for address in addresses:
            self.ip("address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        self.ip("link", "set", name, "up")

    def command(self, *command: str) -> list[str]:
        """The command, to be run in the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, coro: Callable[[], Coroutine[None, None, T]]) -> T:
        """Run it in an event loop whose sockets are in the namespace."""
        return self.call(lambda: asyncio.run(coro()))

    def call(self, function: Callable[[], T]) -> T:
        """Call a function whose sockets are in the namespace."""
        results: list[T] = []
        errors: list[BaseException] = []

        def thread() -> None:
            with Path("/run/netns", self.name).open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            try:
                results.append(function())
            except BaseException as exc:  # noqa: BLE001  raised in the test's own thread
                errors.append(exc)

        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
        if errors:
            raise errors[0]
        return results[0]

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
