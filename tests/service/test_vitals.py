"""Vital signs from the files of a Raspberry Pi, and from this machine."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, NoReturn

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge.contract.messages import Vitals
from edge.host.vitals import MachineVitals

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

MEMINFO = """MemTotal:        3883312 kB
MemFree:         2301116 kB
MemAvailable:    3189540 kB
Buffers:           41924 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""
CAMERA = 1207


def stat_of(pid: int, name: str) -> str:
    ticks, pages = "4130 870", "23411"
    return (
        f"{pid} ({name}) S 1 {pid} {pid} 0 -1 4194560 31017 0 12 0 {ticks} 0 0 20 0 9 0 812 1203818496 {pages} 184467\n"
    )


class Pi:
    """The files of a Raspberry Pi 4 with kernel 6.12."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 0.0
        self.vitals = MachineVitals(root, root=root, now_s=lambda: self.now_s)
        self.write("proc/loadavg", "0.58 0.41 0.33 2/214 1931\n")
        self.write("proc/uptime", "86402.73 331187.11\n")
        self.write("proc/meminfo", MEMINFO)
        self.write(f"proc/{os.getpid()}/stat", stat_of(os.getpid(), "edge-streamer"))
        self.write(f"proc/{CAMERA}/stat", stat_of(CAMERA, "python3 (camera) 1"))
        self.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        self.write("sys/class/thermal/thermal_zone0/temp", "52582\n")
        self.write("sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
        self.write("sys/class/hwmon/hwmon1/name", "rpi_volt\n")
        self.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, camera_pid: int | None = CAMERA) -> Vitals:
        self.now_s += 1
        return self.vitals.read(camera_pid)


def test_all_values_of_a_raspberry_pi(tmp_path: Path) -> None:
    vitals = Pi(tmp_path).read()
    assert vitals.disk_free_bytes is not None
    assert vitals.disk_free_bytes > 0
    process_bytes, ticks = 23411 * os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    assert vitals.model_copy(update={"disk_free_bytes": None}) == Vitals(
        cpu_celsius=52.582,
        under_voltage=False,
        load_1min=0.58,
        memory_available_bytes=3189540 * 1024,
        memory_total_bytes=3883312 * 1024,
        uptime_s=86402.73,
        daemon_memory_bytes=process_bytes,
        daemon_cpu_s=5000 / ticks,
        camera_memory_bytes=process_bytes,
        camera_cpu_s=5000 / ticks,
    )


def test_under_voltage_is_reported(tmp_path: Path) -> None:
    pi = Pi(tmp_path)
    pi.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert pi.read().under_voltage is True


def test_only_the_thermometer_of_the_processor_is_read(tmp_path: Path) -> None:
    pi = Pi(tmp_path)
    pi.write("sys/class/thermal/thermal_zone0/type", "acpitz\n")
    assert pi.read().cpu_celsius is None
    pi.write("sys/class/thermal/thermal_zone1/type", "x86_pkg_temp\n")
    pi.write("sys/class/thermal/thermal_zone1/temp", "61000\n")
    assert pi.read().cpu_celsius == 61.0


def test_missing_values_are_none(tmp_path: Path) -> None:
    assert MachineVitals(tmp_path / "nowhere", root=tmp_path).read(CAMERA) == Vitals()


def test_a_sensor_without_an_answer_is_none(tmp_path: Path) -> None:
    pi = Pi(tmp_path)
    pi.write("sys/class/thermal/thermal_zone0/temp", "")
    pi.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "?\n")
    vitals = pi.read(camera_pid=99)
    assert (vitals.cpu_celsius, vitals.under_voltage, vitals.camera_memory_bytes) == (None, None, None)
    assert pi.read(camera_pid=None).camera_cpu_s is None


def test_values_are_read_at_most_once_a_second(tmp_path: Path) -> None:
    pi = Pi(tmp_path)
    pi.read()
    pi.write("proc/loadavg", "9.00 0.41 0.33 2/214 1931\n")
    assert pi.vitals.read(CAMERA).load_1min == 0.58
    assert pi.read().load_1min == 9.0


def test_nothing_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    pi = Pi(tmp_path)
    for name in ("scandir", "listdir", "open"):
        monkeypatch.setattr(os, name, none_left)
    monkeypatch.setattr(io, "open", none_left)
    assert pi.read().model_copy(update={"disk_free_bytes": None}) == Vitals()


FILES = (
    "proc/loadavg",
    "proc/uptime",
    "proc/meminfo",
    f"proc/{CAMERA}/stat",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm",
)


@given(
    st.lists(st.sampled_from(FILES)), st.text("0123456789 -.:()kBeinfa\n\u0660", max_size=80) | st.binary(max_size=40)
)
@example(["proc/meminfo"], "MemTotal: much kB\nMemAvailable: 5000000000000000000000 kB")
@example(["proc/meminfo"], f"MemTotal: {'9' * 5000} kB")
@example([f"proc/{CAMERA}/stat"], "1207 (x) S 1 2")
@example(list(FILES), "nan")
@example(list(FILES), "-inf")
@example(list(FILES), "1e999")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_of_a_file_raises(tmp_path: Path, names: list[str], content: bytes | str) -> None:
    pi = Pi(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pi.read().model_dump_json()


def test_this_machine_has_the_values_of_every_linux(tmp_path: Path) -> None:
    vitals = MachineVitals(tmp_path).read(os.getpid())
    assert vitals.daemon_memory_bytes is not None
    assert vitals.daemon_memory_bytes > 10_000_000
    assert vitals.camera_cpu_s == vitals.daemon_cpu_s
    assert vitals.memory_total_bytes is not None
    assert vitals.memory_available_bytes is not None
    assert 0 < vitals.memory_available_bytes < vitals.memory_total_bytes
    assert None not in (vitals.load_1min, vitals.uptime_s, vitals.disk_free_bytes)
