"""What `./dev hw-test` takes, and what every test here is handed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bounds import OTHER, Bounds, bounds_of
from edge import __version__
from figures import Report
from vitals import board_model

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

HERE = Path(__file__).parent
_BOUNDS = pytest.StashKey[Bounds]()
_REPORT = pytest.StashKey[Report]()
_SECONDS_AN_HOUR = 3600
_ROOM_S = 300
"""For starting processes and waiting for them, beside what is measured."""
_SENSOR = """
import json, picamera2
print(json.dumps([camera["Model"] for camera in picamera2.Picamera2.global_camera_info()]))
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hw-test")
    group.addoption("--source", default="auto", choices=("auto", "picamera2", "synthetic"), help="of pictures")
    group.addoption("--minute", type=float, default=60.0, metavar="S", help="how long a minute is, to try the tests")
    group.addoption("--soak-h", type=float, default=0.0, metavar="H", help="hours of starting, joining and stopping")
    group.addoption("--json", type=Path, default=HERE / "hw-report.json", metavar="FILE", help="the report")


def pytest_configure(config: pytest.Config) -> None:
    # amqtt leaves the connections of clients that went to the garbage collector.
    config.addinivalue_line("filterwarnings", "ignore:unclosed <StreamWriter:ResourceWarning")
    drawn = config.getoption("source") == "synthetic"
    model = board_model()
    # The drawn picture is no board's camera, and libx264 encodes it on all of them.
    bounds = config.stash[_BOUNDS] = OTHER if drawn else bounds_of(model)
    config.stash[_REPORT] = Report(
        board=bounds.board,
        model=model,
        bounds="estimates: nobody has run them on this board yet" if bounds.estimate else "generous",
        version=__version__,
        source=config.getoption("source"),
        sensor=None if drawn else _sensor(),
        encoder=None,
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_soak.py" and not config.getoption("soak_h") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak_s = config.getoption("soak_h") * _SECONDS_AN_HOUR
    for item in items:
        item.add_marker(pytest.mark.timeout(2 * config.getoption("minute") + soak_s + _ROOM_S))


def pytest_terminal_summary(terminalreporter: TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    report, file = config.stash[_REPORT], config.getoption("json")
    terminalreporter.section("figures")
    terminalreporter.write_line("\n".join(report.lines()))
    failures = [one.nodeid for outcome in ("failed", "error") for one in terminalreporter.stats.get(outcome, [])]
    report.write(file, passed=exitstatus == pytest.ExitCode.OK, failures=failures)
    terminalreporter.write_line(f"\nwritten to {file}")


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("source"))


@pytest.fixture
def minute_s(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("minute"))


@pytest.fixture
def soak_s(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("soak_h")) * _SECONDS_AN_HOUR


@pytest.fixture
def bounds(request: pytest.FixtureRequest) -> Bounds:
    return request.config.stash[_BOUNDS]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[_REPORT]


def _sensor() -> str | None:
    """Asked in a process of its own: who asks keeps the camera manager open. None: picamera2 names no camera."""
    told = subprocess.run([sys.executable, "-c", _SENSOR], check=False, capture_output=True, text=True, timeout=60)
    models = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else []
    return ", ".join(models) or None
