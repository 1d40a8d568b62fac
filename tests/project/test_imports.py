"""Who may import whom, and who may touch what: the walls between the rooms."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED = ("edge.core", "edge.contract", "edge.errors")
ROOMS = ("camera", "streaming", "audio", "sessions", "signalling", "mqtt", "local_api", "host", "tuning")


@dataclass(frozen=True)
class Wall:
    """What the modules below `room` may import."""

    room: str
    project: tuple[str, ...]
    not_these: tuple[str, ...] = ()
    third_party: bool = True
    also: tuple[str, ...] = field(default=())

    def allows(self, name: str) -> bool:
        if name.startswith("."):  # imports are absolute
            return False
        if name == "edge" or name.startswith("edge."):
            return any(name == allowed or name.startswith(f"{allowed}.") for allowed in self.project)
        top = name.partition(".")[0]
        return (self.third_party or top in sys.stdlib_module_names) and top not in self.not_these


# The clock, the loop and the outside world: what a rule is given as a number, or not at all.
OUTSIDE = ("asyncio", "time", "datetime", "random", "socket", "os", "threading", "subprocess", "pathlib", "logging")

WALLS = [
    Wall("edge.core", SHARED, OUTSIDE, third_party=False),
    Wall("edge.contract", SHARED),
    Wall("edge.errors", SHARED),
    Wall("edge.signalling", (*SHARED, "edge.signalling", "edge.mqtt.broker")),
    *(Wall(f"edge.{room}", (*SHARED, f"edge.{room}")) for room in ROOMS if room != "signalling"),
    Wall("edge.client", ("edge.contract", "edge.errors", "edge.client", "edge.mqtt")),
    Wall("edge.settings", (*SHARED, *(f"edge.{room}.settings" for room in ROOMS))),
    Wall("edge.settings_reference", ("edge.settings",)),
    Wall("edge.report", ("edge.__version__", *SHARED, "edge.settings", *(f"edge.{room}" for room in ROOMS))),
    Wall("edge.daemon", ("edge",)),
    Wall("edge.demo", ("edge",)),
    Wall("edge.__main__", ("edge",)),
]

# Packages that one room alone may know.
ONLY = {
    "aiortc": "edge.streaming",
    "aioice": "edge.streaming",
    "pylibsrtp": "edge.streaming",
    "picamera2": "edge.camera",
    "paho": "edge.mqtt",
    "awscrt": "edge.mqtt",
    "awsiot": "edge.mqtt",
    "systemd": "edge.host",
    "amqtt": "edge.demo",
}
PRIVATE_FILE = "edge.streaming.aiortc_private"


def wall_of(module: str) -> Wall:
    return next(wall for wall in WALLS if module == wall.room or module.startswith(f"{wall.room}."))


def imports(source: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from edge import daemon` is an import of edge.daemon.
            names += [f"edge.{alias.name}" for alias in node.names] if module == "edge" else [module]
    return names


def private_of_others(source: str) -> list[str]:
    """Underscore attributes of anything but self and cls."""
    return [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


def faults(module: str, source: str) -> list[str]:
    wall = wall_of(module)
    found = [f"{module} imports {name}" for name in imports(source) if not wall.allows(name)]
    for name in imports(source):
        owner = ONLY.get(name.partition(".")[0])
        if owner and not module.startswith(owner):
            found.append(f"{module} imports {name}, which is for {owner}")
    if module.startswith("edge.streaming") and module != PRIVATE_FILE:
        found += [f"{module} touches {name}" for name in private_of_others(source)]
    return found


def modules() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "edge").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    found.pop("edge")
    return found


def test_the_walls_stand() -> None:
    assert [fault for module, source in modules().items() for fault in faults(module, source)] == []


def circles(sources: dict[str, str]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others; imports for type checkers count, too."""
    imported: dict[str, set[str]] = {}
    for module, source in sources.items():
        reached = set(imports(source))
        while True:
            further = {name for found in reached & sources.keys() for name in imports(sources[found])} - reached
            if not further:
                break
            reached |= further
        imported[module] = reached & sources.keys()
    groups = {
        tuple(sorted(other for other in reached if module in imported[other]))
        for module, reached in imported.items()
        if module in reached
    }
    return [list(group) for group in sorted(groups)]


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(modules()) == []


def test_a_circle_would_be_found() -> None:
    sources = {"a": "import b", "b": "if TYPE_CHECKING:\n    import c", "c": "def f():\n    import a", "d": "import a"}
    assert circles(sources) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge.core.lane", "import asyncio"),
        ("edge.core.lane", "from time import monotonic"),
        ("edge.core.lane", "import pydantic"),
        ("edge.core.lane", "from edge.sessions.session import Session"),
        ("edge.contract.codes", "from edge.settings import Settings"),
        ("edge.errors", "import edge.daemon"),
        ("edge.sessions.service", "from edge.streaming.hub import Hub"),
        ("edge.sessions.service", "if TYPE_CHECKING:\n    from edge.camera.port import Camera"),
        ("edge.signalling.commands", "from edge.sessions.service import Sessions"),
        ("edge.client.camera_client", "from edge.signalling.commands import Commands"),
        ("edge.client.camera_client", "from edge.core.lane import Lane"),
        ("edge.settings", "from edge.camera.process import CameraProcess"),
        ("edge.sessions.session", "import aiortc"),
        ("edge.report", "from edge.daemon import Daemon"),
        ("edge.report", "import aiortc"),
        ("edge.daemon", "from picamera2 import Picamera2"),
        ("edge.streaming.peer", "transport._connection.close()"),
        ("edge.streaming.peer", "sender._RTCRtpSender__stop()"),
        ("edge.core.lane", "from datetime import datetime"),
        ("edge.core.lane", "from . import budget"),
        ("edge.core.lane", "from ..daemon import run"),
        ("edge.daemon", "from .streaming import hub"),
        ("edge.sessions.service", "import edge.daemon"),
        ("edge.sessions.service", "from edge import daemon"),
        ("edge.sessions.service", "import pylibsrtp"),
        ("edge.sessions.service", "import aioice"),
        ("edge.signalling.commands", "from edge.mqtt.linked_broker import LinkedBroker"),
        ("edge.mqtt.linked_broker", "from edge.signalling.commands import Commands"),
        ("edge.daemon", "import paho.mqtt.client"),
        ("edge.daemon", "from awscrt import mqtt5"),
    ],
)
def test_a_hole_would_be_found(module: str, source: str) -> None:
    assert faults(module, source)
