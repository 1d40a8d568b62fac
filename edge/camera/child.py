"""The camera process: `python -m edge.camera.child --fd N --settings JSON`.

The main thread runs the source and obeys. A reader thread posts what the daemon orders, a writer thread sends what
the outbox holds; so neither a slow daemon nor a source that hangs is more than the other's problem. Whatever
happens to the daemon, this process follows it at once. It imports as little as it can: it starts again and again
on computers with little memory. Settings come checked, from the daemon.
"""

from __future__ import annotations

import argparse
import base64
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
from edge.camera.port import Plan
from edge.camera.wire import (
    MESSAGE_LIMIT_BYTES,
    BadWire,
    Closed,
    Deframer,
    Done,
    EncodeSd,
    Failed,
    MakeKeyframe,
    Opened,
    Ready,
    SdFailed,
    SetBitrate,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
    decode,
)
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from edge.camera.port import Source
    from edge.camera.wire import Order
    from edge.core.access_unit import AccessUnit, Quality
    from edge.core.camera_controls import Values

log = logging.getLogger("edge.camera.child")

_GOODBYE_S = 1.0
"""How long the source may take to let go of the device when the daemon is gone."""
_PR_SET_PDEATHSIG = 1
_MODEL = Path("/proc/device-tree/model")


def source_for(settings: dict[str, Any]) -> Source:
    """The source that the settings ask for; only its own libraries are imported."""
    kind = settings["source"]
    hd, sd = Plan(**settings["hd"]), Plan(**settings["sd"])
    if kind == "file":
        from edge.camera.file import FileSource  # noqa: PLC0415

        return FileSource(Path(settings["path"]), hd.fps)
    if kind in {"auto", "picamera2"}:
        from edge.camera.picamera2_source import Picamera2Source, finds_a_camera  # noqa: PLC0415

        # A Raspberry Pi without its camera has a fault, which a drawing would hide.
        if kind == "picamera2" or is_raspberry_pi() or finds_a_camera():
            return Picamera2Source(
                settings["number"], hd, sd, settings["keyframe_interval_s"], settings["open_timeout_s"]
            )
    from edge.camera.synthetic import SyntheticSource  # noqa: PLC0415

    return SyntheticSource(hd, sd, settings["keyframe_interval_s"])


def is_raspberry_pi() -> bool:
    """Whether the device tree says so."""
    try:
        return _MODEL.read_bytes().startswith(b"Raspberry Pi")
    except OSError:
        return False


class CameraChild:
    """One source, one socket. `None` in the queue: the daemon is gone."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self._sock = sock
        self._settings = settings
        self._source = source_for(settings)
        self._open = False
        self._outbox = Outbox()
        self._todo: queue.SimpleQueue[Order | Failed | SdFailed | None] = queue.SimpleQueue()
        self._short: set[Quality] = set()

    def run(self) -> NoReturn:
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        threading.Thread(target=self._write, name="outbox", daemon=True).start()
        self._outbox.report(Ready(self._source.name))
        while (todo := self._todo.get()) is not None:
            self._obey(todo)
        self._source.stop()
        os._exit(0)

    def _obey(self, todo: Order | Failed | SdFailed) -> None:
        match todo:
            case Start(values, settings):
                self._stop()
                if settings is not None and settings != self._settings:
                    self._settings, self._source = settings, source_for(settings)
                self._start(values)
            case Stop():
                self._stop()
                self._outbox.report(Closed(), opens=False)
            case SetControls() | TakeSnapshot():
                self._outbox.report(self._answer(todo))
            case _ if self._open:
                self._obey_open(todo)

    def _obey_open(self, todo: Order | Failed | SdFailed) -> None:
        match todo:
            case Failed():
                self._fail(todo.message)
            case SdFailed(message):
                self._encode_sd(on=False)
                self._outbox.report(SdFailed(message))
            case EncodeSd(on):
                self._encode_sd(on=on)
            case MakeKeyframe(quality):
                self._short.discard(quality)
                self._source.request_keyframe(quality)
            case SetBitrate(quality, bitrate_bps):
                self._source.set_bitrate(quality, bitrate_bps)

    def _encode_sd(self, *, on: bool) -> None:
        try:
            self._source.encode_sd(on=on, failed=lambda message: self._todo.put(SdFailed(message)))
        except CameraUnavailable as exc:
            if on:
                self._outbox.report(SdFailed(exc.message))
            else:
                self._fail(exc.message)

    def _fail(self, message: str) -> None:
        self._stop()
        self._outbox.report(Failed(message), opens=False)

    def _answer(self, order: SetControls | TakeSnapshot) -> Done:
        if not self._open:
            return Done(order.ticket, error="the camera is not open")
        try:
            if isinstance(order, SetControls):
                self._source.set_controls(order.values)
                return Done(order.ticket)
            jpeg = self._source.snapshot(order.width, order.jpeg_quality)
            if len(jpeg) > MESSAGE_LIMIT_BYTES // 2:
                return Done(order.ticket, error=f"a picture of {len(jpeg)} bytes is too large: ask for a smaller one")
            return Done(order.ticket, base64=base64.b64encode(jpeg).decode())
        except CameraUnavailable as exc:
            return Done(order.ticket, error=exc.message)

    def _start(self, values: Values) -> None:
        self._short.clear()
        try:
            opening = self._source.start(values, self._put, lambda message: self._todo.put(Failed(message)))
        except CameraUnavailable as exc:
            self._outbox.report(Failed(exc.message), opens=False)
            return
        self._open = True
        self._outbox.report(Opened(opening), opens=True)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._source.stop()

    def _put(self, unit: AccessUnit) -> None:
        # One wish is enough until it is granted.
        if not self._outbox.put(unit) and unit.quality not in self._short:
            self._short.add(unit.quality)
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
    CameraChild(socket.socket(fileno=args.fd), args.settings).run()


if __name__ == "__main__":
    main()
