"""The camera process: `python -m edge.camera.child --fd N --settings JSON`.

The main thread runs the source and carries out orders. A reader thread receives the orders, and a writer thread sends
what the send queue holds. So a slow daemon does not hold up the source, and a source that hangs does not hold up the
connection. When the daemon ends, this process ends at once. It imports little, because it is restarted on computers
with little memory. The daemon has validated the settings.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from edge.camera.port import Plan
from edge.camera.send_queue import SendQueue
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
    Order,
    Probe,
    Probed,
    Ready,
    SdFailed,
    SetBitrate,
    SetControls,
    Start,
    Stop,
    TakeSnapshot,
    decode_order,
)
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from edge.camera.port import Source
    from edge.core.access_unit import AccessUnit, Quality
    from edge.core.camera_controls import ControlValues

    _Task: TypeAlias = "Order | _SourceFailed | _SdEncodeFailed"

log = logging.getLogger("edge.camera.child")

_STOP_TIMEOUT_S = 1.0
"""How long the source may take to close the device after the daemon has ended."""
_PR_SET_PDEATHSIG = 1
_MODEL = Path("/proc/device-tree/model")


def source_for(settings: dict[str, Any]) -> Source:
    """The source that the settings name. Only the libraries of that source are imported."""
    kind = settings["source"]
    hd, sd = Plan(**settings["hd"]), Plan(**settings["sd"])
    if kind == "file":
        from edge.camera.file import FileSource  # noqa: PLC0415

        return FileSource(Path(settings["path"]), hd.fps)
    if kind in {"auto", "picamera2"}:
        from edge.camera.picamera2_source import Picamera2Source, finds_a_camera  # noqa: PLC0415

        # On a Raspberry Pi, a missing camera is a fault. A drawn picture would hide it.
        if kind == "picamera2" or is_raspberry_pi() or finds_a_camera():
            return Picamera2Source(
                settings["number"], hd, sd, settings["keyframe_interval_s"], settings["open_timeout_s"]
            )
    from edge.camera.synthetic import SyntheticSource  # noqa: PLC0415

    return SyntheticSource(hd, sd, settings["keyframe_interval_s"])


def is_raspberry_pi() -> bool:
    """Whether the device tree names a Raspberry Pi."""
    try:
        return _MODEL.read_bytes().startswith(b"Raspberry Pi")
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _SourceFailed:
    """The source reported, from its own thread, that the run of this number failed."""

    run: int
    message: str


@dataclass(frozen=True, slots=True)
class _SdEncodeFailed:
    """The same for SD alone. `number`: of the order that started it."""

    number: int
    message: str


class CameraChild:
    """One source, one socket. None in the task queue: the daemon has ended."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self._sock = sock
        self._settings = settings
        self._source = source_for(settings)
        self._open = False
        # A failure may wait in the queue while its run ends and the next one starts; only the latest run counts.
        self._run = 0
        self._sd_number: int | None = None
        self._send_queue = SendQueue()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._keyframe_requested: set[Quality] = set()

    def run(self) -> NoReturn:
        threading.Thread(target=self._read, name="receive", daemon=True).start()
        threading.Thread(target=self._write, name="send", daemon=True).start()
        found = self._probe()
        self._send_queue.report(Ready(self._source.name, found.missing, found.detail))
        while (task := self._tasks.get()) is not None:
            self._carry_out(task)
        self._source.stop()
        os._exit(0)

    def _carry_out(self, task: _Task) -> None:
        match task:
            case Start(values, settings):
                self._stop()
                if settings is not None and settings != self._settings:
                    self._settings, self._source = settings, source_for(settings)
                self._start(values)
            case Stop():
                self._stop()
                self._send_queue.report(Closed(), opens=False)
            case Probe():
                self._send_queue.report(self._probe())
            case SetControls() | TakeSnapshot():
                self._send_queue.report(self._answer(task))
            case _ if self._open:
                self._carry_out_while_open(task)

    def _carry_out_while_open(self, task: _Task) -> None:
        match task:
            case _SourceFailed(run, message) if run == self._run:
                self._fail(CameraUnavailable(message))
            case _SdEncodeFailed(number, message) if number == self._sd_number:
                self._stop_sd()
                self._send_queue.report(SdFailed(message, number))
            case EncodeSd(on=True, number=number):
                self._start_sd(number)
            case EncodeSd(on=False):
                self._stop_sd()
            case MakeKeyframe(quality):
                self._keyframe_requested.discard(quality)
                self._source.request_keyframe(quality)
            case SetBitrate(quality, bitrate_bps):
                self._source.set_bitrate(quality, bitrate_bps)

    def _start_sd(self, number: int) -> None:
        self._sd_number = number
        try:
            self._source.encode_sd(on=True, failed=lambda message: self._tasks.put(_SdEncodeFailed(number, message)))
        except CameraUnavailable as exc:
            self._send_queue.report(SdFailed(exc.message, number))

    def _stop_sd(self) -> None:
        self._sd_number = None
        try:
            self._source.encode_sd(on=False)
        except CameraUnavailable as exc:
            self._fail(exc)

    def _fail(self, error: CameraUnavailable) -> None:
        self._stop()
        self._send_queue.report(Failed(error.message, error.detail), opens=False)

    def _probe(self) -> Probed:
        if not self._open:
            try:
                self._source.probe()
            except CameraUnavailable as exc:
                return Probed(exc.message, exc.detail)
        return Probed()

    def _answer(self, order: SetControls | TakeSnapshot) -> Done:
        if not self._open:
            return Done(order.ticket, error="the camera is not open")
        try:
            if isinstance(order, SetControls):
                self._source.set_controls(order.values)
                return Done(order.ticket)
            jpeg = self._source.snapshot(order.width, order.jpeg_quality)
            if len(jpeg) > MESSAGE_LIMIT_BYTES // 2:
                return Done(order.ticket, error=f"a picture of {len(jpeg)} bytes is too large; request a smaller one")
            return Done(order.ticket, base64=base64.b64encode(jpeg).decode())
        except CameraUnavailable as exc:
            return Done(order.ticket, error=exc.message)

    def _start(self, values: ControlValues) -> None:
        self._keyframe_requested.clear()
        self._run += 1
        run = self._run
        try:
            opening = self._source.start(
                values, self._put, lambda message: self._tasks.put(_SourceFailed(run, message))
            )
        except CameraUnavailable as exc:
            self._fail(exc)
            return
        self._open = True
        self._send_queue.report(Opened(opening), opens=True)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._source.stop()

    def _put(self, unit: AccessUnit) -> None:
        # One request at a time is enough.
        if not self._send_queue.put(unit) and unit.quality not in self._keyframe_requested:
            self._keyframe_requested.add(unit.quality)
            self._tasks.put(MakeKeyframe(unit.quality))

    def _read(self) -> None:
        deframer = Deframer()
        try:
            while data := self._sock.recv(65536):
                for body in deframer.feed(data):
                    self._tasks.put(decode_order(body))
        except OSError:
            pass  # the daemon has ended
        except BadWire as exc:
            log.error("protocol error from the daemon error=%s", exc)
        self._leave()

    def _write(self) -> None:
        try:
            while True:
                self._sock.sendall(self._send_queue.take())
        except OSError:
            pass  # the daemon has ended
        except BadWire as exc:
            log.error("message not sent to the daemon error=%s", exc)
        self._leave()

    def _leave(self) -> NoReturn:
        """End the process. Called from the other threads, because the main thread may hang in the source."""
        self._tasks.put(None)
        threading.Event().wait(_STOP_TIMEOUT_S)
        os._exit(1)


def _die_with_the_daemon() -> None:
    """Have the kernel kill this process when the daemon ends, also while this process is suspended. Linux only.

    The signal is sent when the thread that started this process ends: the thread of the daemon's event loop.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> NoReturn:
    """Run the camera process; never returns."""
    _die_with_the_daemon()
    # Ctrl-C in a terminal also goes to the daemon, which then stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="edge.camera.child")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="camera: %(levelname)s %(message)s")
    # numpy would start a thread per core, each with its own memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    CameraChild(socket.socket(fileno=args.fd), args.settings).run()


if __name__ == "__main__":
    main()
