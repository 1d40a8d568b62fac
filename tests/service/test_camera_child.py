"""The camera process alone, over its socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.camera.reports import decode
from edge.camera.settings import CameraSettings
from edge.camera.wire import (
    Closed,
    Deframer,
    Done,
    EncodeSd,
    Failed,
    Opened,
    Ready,
    SdFailed,
    SetControls,
    Start,
    Stop,
    encode,
)
from edge.core.access_unit import AccessUnit
from tests.rigs.camera import GENEROUS_S, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.camera.wire import Order, Report


class Wire:
    """The daemon's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deframer = Deframer()
        self._received: list[AccessUnit | Report] = []

    def send(self, order: Order) -> None:
        self._sock.sendall(encode(order))

    def report(self) -> Report:
        """The next message that is not an access unit."""
        while True:
            while not self._received:
                self._received += [decode(body) for body in self._deframer.feed(self._sock.recv(65536))]
            if not isinstance(message := self._received.pop(0), AccessUnit):
                return message


@contextmanager
def scripted_camera() -> Iterator[Wire]:
    settings = CameraSettings.model_validate(SMALL).model_dump_json()
    ours, theirs = socket.socketpair()
    ours.settimeout(GENEROUS_S)
    command = [sys.executable, "-m", "tests.rigs.scripted_camera", "--fd", str(theirs.fileno()), "--settings", settings]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            wire = Wire(ours)
            assert isinstance(wire.report(), Ready)
            yield wire
            ours.close()
            assert process.wait(GENEROUS_S) == 0
        finally:
            process.kill()


def test_a_late_failure_of_an_earlier_run_does_not_close_a_fresh_camera() -> None:
    with scripted_camera() as wire:
        for order, answer in ((Start(), Opened), (Stop(), Closed), (Start(), Opened)):
            wire.send(order)
            assert isinstance(wire.report(), answer)
        wire.send(SetControls(1, {"fail": 0}))
        wire.send(SetControls(2, {"fail": 1}))
        assert [wire.report() for _ in range(3)] == [Done(1), Done(2), Failed("run 1 failed", "run 1 failed")]


def test_a_late_failure_of_an_earlier_sd_encode_does_not_end_a_fresh_one() -> None:
    with scripted_camera() as wire:
        wire.send(Start())
        assert isinstance(wire.report(), Opened)
        for number, on in enumerate((True, False, True)):
            wire.send(EncodeSd(on, number))
        wire.send(SetControls(1, {"fail_sd": 0}))
        wire.send(SetControls(2, {"fail_sd": 1}))
        assert [wire.report() for _ in range(3)] == [Done(1), Done(2), SdFailed("SD encode 1 failed", number=2)]
