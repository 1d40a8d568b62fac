"""Whether the clock is known to be set, by what the system shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge.host.clock import SystemClock, Timedated, kernel_error_us

if TYPE_CHECKING:
    from pathlib import Path

UNSET_US = 16_000_000
NOW_S = 1_800_000_000.0


class Machine:
    """A system's files below a directory, and what its kernel says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.error_us = UNSET_US
        self.asked = 0
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
        self.asked += 1
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


def test_it_is_not_known_until_ntp_has_set_it_and_then_stays_known(machine: Machine) -> None:
    assert not machine.known()
    machine.error_us = 15_999_999
    assert machine.known()
    machine.error_us = UNSET_US
    assert machine.known()


def test_timesyncd_says_so_by_its_file(machine: Machine) -> None:
    machine.write("run/systemd/timesync/synchronized")
    assert machine.known()


@pytest.mark.parametrize(
    ("hctosys", "since_epoch", "known"),
    [
        ("1\n", f"{NOW_S:.0f}\n", True),
        ("1\n", f"{NOW_S - 1:.0f}\n", True),
        ("0\n", f"{NOW_S:.0f}\n", False),  # nobody took the time from it
        ("1\n", "3600\n", False),  # no battery: 1970, and systemd has advanced the system's clock
        ("1\n", "", False),
    ],
)
def test_a_clock_chip_that_set_it_and_still_agrees(
    machine: Machine, hctosys: str, since_epoch: str, known: bool
) -> None:
    machine.write("sys/class/rtc/rtc0/hctosys", hctosys)
    machine.write("sys/class/rtc/rtc0/since_epoch", since_epoch)
    assert machine.known() == known


def test_a_chip_that_cannot_be_read(machine: Machine) -> None:
    machine.write("sys/class/rtc/rtc0/hctosys", "1\n")  # the driver refuses the time after its battery was empty
    assert not machine.known()


def test_the_system_is_asked_once_a_second_at_most(machine: Machine) -> None:
    for _ in range(100):
        assert not machine.clock.known()
    assert machine.asked == 1


def test_a_trusted_clock_is_known(tmp_path: Path) -> None:
    assert SystemClock(trusted=True, root=tmp_path, error_us=lambda: UNSET_US).known()


def test_the_kernel_answers() -> None:
    assert 0 <= kernel_error_us() <= UNSET_US


@pytest.mark.parametrize(("says", "known"), [("yes", True), ("no", False), ("", False)])
def test_timedated_is_asked_where_the_kernel_refuses_an_answer(tmp_path: Path, says: str, known: bool) -> None:
    now_s = [0.0]
    timedated = Timedated(["echo", says], lambda: now_s[0])
    clock = SystemClock(
        trusted=False,
        root=tmp_path,
        error_us=lambda: UNSET_US,
        timedated=timedated.synchronized,
        now_s=lambda: now_s[0],
    )
    assert not clock.known()  # it never waits
    assert timedated._asking is not None
    timedated._asking.wait(10)
    now_s[0] = 1.0
    assert clock.known() is known


def test_a_timedated_that_does_not_answer_or_is_not_there_costs_nothing(tmp_path: Path) -> None:
    now_s = [0.0]
    silent = Timedated(["sleep", "1000"], lambda: now_s[0])
    assert not silent.synchronized()
    now_s[0] = 30.0
    assert not silent.synchronized()  # ended
    while silent._asking is not None:
        assert not silent.synchronized()
    assert not Timedated(["/nonexistent"]).synchronized()
