"""Which process holds a busy camera, by the lock that libcamera takes on its media device."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from edge.camera.holders import camera_devices, holders_of

if TYPE_CHECKING:
    from pathlib import Path


def test_the_process_with_the_lock_is_named_and_one_without_is_not(tmp_path: Path) -> None:
    device = tmp_path / "media0"
    device.touch()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+')\n"
        "if sys.argv[2] == 'lock': fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(device)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen([*command, "look"], **pipes) as onlooker,  # type: ignore[call-overload]
        subprocess.Popen([*command, "lock"], **pipes) as holder,  # type: ignore[call-overload]
    ):
        for process in (onlooker, holder):
            process.stdout.readline()
        (held,) = holders_of([device, tmp_path / "media1"])
        assert held.endswith(f"({holder.pid})")
        assert held.startswith("python")
        for process in (onlooker, holder):
            process.stdin.close()
            process.wait()
    assert holders_of([device]) == []


def test_a_machine_without_a_camera_has_no_holder() -> None:
    assert isinstance(holders_of(camera_devices()), list)
    assert holders_of([]) == []
