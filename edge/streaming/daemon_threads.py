"""Threads for blocking calls that nobody waits for when the process ends."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class DaemonThreads(Executor):
    """At most `count` threads, started when they are needed. Calls wait for a free one; cancelled calls are skipped.

    A ThreadPoolExecutor would hold up the end of the process until all its calls have returned.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """Any thread."""
        future: Future[T] = Future()
        with self._lock:
            if self._started < self._count:
                threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def _run(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as exc:  # noqa: BLE001  raised where the future is awaited
                future.set_exception(exc)
            else:
                future.set_result(result)
            # A waiting thread keeps nothing of its last call.
            del future, call
