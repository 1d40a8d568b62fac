"""Whether the clock is set, by the state of the system."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

import pytest

from edge.host.clock import SystemClock, Timedated, kernel_error_us

if TYPE_CHECKING:
    from pathlib import Path

UNSET_US = 16_000_000
NOW_S = 1_800_000_000.0


class Machine:
    """The files of a system below a directory, and its kernel's estimate."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.error_us = UNSET_US
        self.checks = 0
        self.now_s = 0.0
        self.clock = SystemClock(
            trusted=False,
            root=root,
            error_us=self._ask,
            timedated=lambda: False,
            now_s=lambda: self.now_s,
            wall_s=lambda: NOW_S,
        )

    def _ask(self) -> int:
        self.checks += 1
        return self.error_us

    def known(self) -> bool:
        self.now_s += 1
        return self.clock.known()

    def write(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_clock_is_set_from_ntp_on(machine: Machine) -> None:
    assert not machine.known()
    machine.error_us = 15_999_999
    assert machine.known()
    machine.error_us = UNSET_US
    assert machine.known()


def test_the_file_of_timesyncd_counts(machine: Machine) -> None:
    machine.write("run/systemd/timesync/synchronized")
    assert machine.known()


@pytest.mark.parametrize(
    ("hctosys", "since_epoch", "known"),
    [
        ("1\n", f"{NOW_S:.0f}\n", True),
        ("1\n", f"{NOW_S - 1:.0f}\n", True),
        ("0\n", f"{NOW_S:.0f}\n", False),  # the kernel did not read it
        ("1\n", "3600\n", False),  # no battery: 1970, and systemd advanced the system's clock
        ("1\n", "", False),
    ],
)
def test_a_clock_chip_counts_if_it_was_read_and_agrees(
    machine: Machine, hctosys: str, since_epoch: str, known: bool
) -> None:
    machine.write("sys/class/rtc/rtc0/hctosys", hctosys)
    machine.write("sys/class/rtc/rtc0/since_epoch", since_epoch)
    assert machine.known() == known


def test_an_unreadable_clock_chip_does_not_count(machine: Machine) -> None:
    machine.write("sys/class/rtc/rtc0/hctosys", "1\n")  # the driver refuses the time after the battery was empty
    assert not machine.known()


def test_the_system_is_checked_at_most_once_a_second(machine: Machine) -> None:
    for _ in range(100):
        assert not machine.clock.known()
    assert machine.checks == 1


def test_a_trusted_clock_counts_as_set(tmp_path: Path) -> None:
    assert SystemClock(trusted=True, root=tmp_path, error_us=lambda: UNSET_US).known()


def test_the_kernel_answers() -> None:
    assert 0 <= kernel_error_us() <= UNSET_US


@pytest.mark.parametrize(("says", "known"), [("yes", True), ("no", False), ("", False)])
def test_timedated_answers_if_the_kernel_refuses(tmp_path: Path, says: str, known: bool) -> None:
    now_s = [0.0]
    timedated = Timedated(["echo", says], lambda: now_s[0])
    clock = SystemClock(
        trusted=False,
        root=tmp_path,
        error_us=lambda: UNSET_US,
        timedated=timedated.synchronized,
        now_s=lambda: now_s[0],
    )
    assert not clock.known()  # a call does not wait
    assert timedated._query is not None
    timedated._query.wait(10)
    now_s[0] = 1.0
    assert clock.known() is known


def test_a_missing_or_silent_timedated_blocks_nothing(tmp_path: Path) -> None:
    now_s = [0.0]
    silent = Timedated(["sleep", "1000"], lambda: now_s[0])
    assert not silent.synchronized()
    now_s[0] = 30.0
    assert not silent.synchronized()  # ended
    while silent._query is not None:
        assert not silent.synchronized()
    assert not Timedated(["/nonexistent"]).synchronized()


def test_unreadable_directory_of_clock_chips_leaves_the_clock_unset(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    machine.write("sys/class/rtc/rtc0/hctosys", "1")
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, none_left)
    assert not machine.known()
