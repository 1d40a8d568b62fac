"""The options of `./dev hw-test` and the fixtures of its tests."""

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
_HOUR_S = 3600
_OVERHEAD_S = 300
"""Time to start processes and wait for them, in addition to the measurement."""
_SENSOR = """
import json, picamera2
print(json.dumps([camera["Model"] for camera in picamera2.Picamera2.global_camera_info()]))
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hw-test")
    group.addoption("--source", default="auto", choices=("auto", "picamera2", "synthetic"), help="video source")
    group.addoption("--minute", type=float, default=60.0, metavar="S", help="length of a minute, to try the tests")
    group.addoption("--soak-h", type=float, default=0.0, metavar="H", help="hours of the soak test")
    group.addoption("--json", type=Path, default=HERE / "hw-report.json", metavar="FILE", help="path of the report")


def pytest_configure(config: pytest.Config) -> None:
    # amqtt does not close the connections of disconnected clients.
    config.addinivalue_line("filterwarnings", "ignore:unclosed <StreamWriter:ResourceWarning")
    synthetic = config.getoption("source") == "synthetic"
    model = board_model()
    # The synthetic source uses no camera, and libx264 encodes it on every board.
    bounds = config.stash[_BOUNDS] = OTHER if synthetic else bounds_of(model)
    config.stash[_REPORT] = Report(
        board=bounds.board,
        model=model,
        bounds="estimates, not yet measured on this board" if bounds.estimate else "generous",
        version=__version__,
        source=config.getoption("source"),
        sensor=None if synthetic else _sensor(),
        encoder=None,
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_soak.py" and not config.getoption("soak_h") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak_s = config.getoption("soak_h") * _HOUR_S
    for item in items:
        item.add_marker(pytest.mark.timeout(2 * config.getoption("minute") + soak_s + _OVERHEAD_S))


def pytest_terminal_summary(terminalreporter: TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    report, file = config.stash[_REPORT], config.getoption("json")
    terminalreporter.section("figures")
    terminalreporter.write_line("\n".join(report.lines()))
    failures = [one.nodeid for outcome in ("failed", "error") for one in terminalreporter.stats.get(outcome, [])]
    report.write(file, passed=exitstatus == pytest.ExitCode.OK, failures=failures)
    terminalreporter.write_line(f"\nreport written to {file}")


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("source"))


@pytest.fixture
def minute_s(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("minute"))


@pytest.fixture
def soak_s(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("soak_h")) * _HOUR_S


@pytest.fixture
def bounds(request: pytest.FixtureRequest) -> Bounds:
    return request.config.stash[_BOUNDS]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[_REPORT]


def _sensor() -> str | None:
    """The camera models, or None. Runs in another process, because picamera2 keeps the camera manager open."""
    result = subprocess.run([sys.executable, "-c", _SENSOR], check=False, capture_output=True, text=True, timeout=60)
    models = json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else []
    return ", ".join(models) or None
