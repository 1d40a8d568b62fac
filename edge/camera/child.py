"""The camera process: `python -m edge.camera.child --fd N --settings JSON`.

The main thread runs the source and obeys. A reader thread posts what the daemon orders, a writer thread sends what
the outbox holds; so neither a slow daemon nor a source that hangs is more than the other's problem. Whatever
happens to the daemon, this process follows it at once. It imports as little as it can: it starts again and again
on computers with little memory. Settings come checked, from the daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edge.camera.outbox import Outbox
from edge.camera.wire import (
    BadWire,
    Closed,
    Deframer,
    Failed,
    MakeKeyframe,
    Opened,
    Ready,
    SetBitrate,
    Start,
    Stop,
    decode,
)
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from edge.camera.port import Source
    from edge.camera.wire import Order
    from edge.core.access_unit import AccessUnit

log = logging.getLogger("edge.camera.child")

_GOODBYE_S = 1.0
"""How long the source may take to let go of the device when the daemon is gone."""
_PR_SET_PDEATHSIG = 1


def source_for(settings: dict[str, Any]) -> Source:
    """The source that the settings ask for; only its own libraries are imported."""
    if settings["source"] == "file":
        from edge.camera.file import FileSource  # noqa: PLC0415

        return FileSource(Path(settings["path"]), settings["fps"])
    from edge.camera.synthetic import SyntheticSource  # noqa: PLC0415

    return SyntheticSource(
        settings["width"],
        settings["height"],
        settings["fps"],
        settings["bitrate_bps"],
        settings["keyframe_interval_s"],
    )


class CameraChild:
    """One source, one socket. `None` in the queue: the daemon is gone."""

    def __init__(self, sock: socket.socket, source: Source) -> None:
        self._sock = sock
        self._source = source
        self._open = False
        self._outbox = Outbox()
        self._todo: queue.SimpleQueue[Order | Failed | None] = queue.SimpleQueue()
        self._short = threading.Event()

    def run(self) -> NoReturn:
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        threading.Thread(target=self._write, name="outbox", daemon=True).start()
        self._outbox.report(Ready())
        while (todo := self._todo.get()) is not None:
            self._obey(todo)
        self._source.stop()
        os._exit(0)

    def _obey(self, todo: Order | Failed) -> None:
        match todo:
            case Start():
                self._start()
            case Stop():
                self._stop()
                self._outbox.report(Closed())
            case Failed() if self._open:
                self._stop()
                self._outbox.report(todo)
            case MakeKeyframe(quality) if self._open:
                self._short.clear()
                self._source.request_keyframe(quality)
            case SetBitrate(quality, bitrate_bps) if self._open:
                self._source.set_bitrate(quality, bitrate_bps)

    def _start(self) -> None:
        self._stop()
        self._short.clear()
        try:
            stream_format = self._source.start(self._put, lambda message: self._todo.put(Failed(message)))
        except CameraUnavailable as exc:
            self._outbox.report(Failed(exc.message))
            return
        self._open = True
        self._outbox.report(Opened(stream_format), opens=True)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._source.stop()

    def _put(self, unit: AccessUnit) -> None:
        # One wish is enough until it is granted.
        if not self._outbox.put(unit) and not self._short.is_set():
            self._short.set()
            self._todo.put(MakeKeyframe(unit.quality))

    def _read(self) -> None:
        deframer = Deframer()
        with contextlib.suppress(OSError, BadWire):
            while data := self._sock.recv(65536):
                for body in deframer.feed(data):
                    self._todo.put(decode(body))  # type: ignore[arg-type]
        self._leave()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._sock.sendall(self._outbox.take())
        self._leave()

    def _leave(self) -> NoReturn:
        """End the process, from another thread than the main one, which may hang in the source."""
        self._todo.put(None)
        threading.Event().wait(_GOODBYE_S)
        os._exit(1)


def _die_with_the_daemon() -> None:
    """Where the kernel can (Linux): also when no thread of this process runs any more.

    The kernel means the thread that started this process: the daemon's event loop.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> NoReturn:
    """Be the camera process; never returns."""
    _die_with_the_daemon()
    # Ctrl-C in a terminal goes to the daemon as well, and the daemon decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="edge.camera.child")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="camera: %(levelname)s %(message)s")
    # numpy would start a thread, with memory of its own, for each core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    CameraChild(socket.socket(fileno=args.fd), source_for(args.settings)).run()


if __name__ == "__main__":
    main()
