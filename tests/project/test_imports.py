"""Rules for imports between the packages of `edge`, and for private attributes of aiortc."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED = ("edge.core", "edge.contract", "edge.errors", "edge.files")
PACKAGES = ("camera", "streaming", "audio", "sessions", "signalling", "mqtt", "local_api", "host", "tuning")


@dataclass(frozen=True)
class Rule:
    """What the modules of a package may import."""

    package: str
    project: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    third_party: bool = True

    def allows(self, name: str) -> bool:
        if name.startswith("."):  # imports are absolute
            return False
        if name == "edge" or name.startswith("edge."):
            return any(name == allowed or name.startswith(f"{allowed}.") for allowed in self.project)
        top = name.partition(".")[0]
        return (self.third_party or top in sys.stdlib_module_names) and top not in self.forbidden


# Time, the event loop and I/O: core gets these as arguments or not at all.
IMPURE = ("asyncio", "time", "datetime", "random", "socket", "os", "threading", "subprocess", "pathlib", "logging")

RULES = [
    Rule("edge.core", SHARED, IMPURE, third_party=False),
    Rule("edge.contract", SHARED),
    Rule("edge.errors", SHARED),
    Rule("edge.files", ()),
    Rule("edge.signalling", (*SHARED, "edge.signalling", "edge.mqtt.broker")),
    *(Rule(f"edge.{package}", (*SHARED, f"edge.{package}")) for package in PACKAGES if package != "signalling"),
    Rule("edge.client", ("edge.contract", "edge.errors", "edge.client", "edge.mqtt")),
    Rule("edge.settings", (*SHARED, *(f"edge.{package}.settings" for package in PACKAGES))),
    Rule("edge.settings_reference", ("edge.settings", "edge.contract.faults")),
    Rule(
        "edge.preflight",
        (
            *SHARED,
            "edge.settings",
            "edge.mqtt",
            "edge.host.state_directory",
            "edge.host.systemd",
            "edge.signalling.tokens",
        ),
    ),
    Rule("edge.supervisor", SHARED),
    Rule("edge.daemon", ("edge",)),
    Rule("edge.demo", ("edge",)),
    Rule("edge.__main__", ("edge",)),
]

# Third-party packages that only one package may import.
ONLY_IN = {
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
PRIVATE_FILES = ("edge.streaming.aiortc_ice", "edge.streaming.aiortc_rtp")


def rule_for(module: str) -> Rule:
    return next(rule for rule in RULES if module == rule.package or module.startswith(f"{rule.package}."))


@functools.cache
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


def foreign_private_attributes(source: str) -> list[str]:
    """Private attributes of objects other than self and cls."""
    return [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


def faults(module: str, source: str) -> list[str]:
    rule = rule_for(module)
    found = [f"{module} imports {name}" for name in imports(source) if not rule.allows(name)]
    for name in imports(source):
        owner = ONLY_IN.get(name.partition(".")[0])
        if owner and not module.startswith(owner):
            found.append(f"{module} imports {name}, which only {owner} may import")
    if module.startswith("edge.streaming") and module not in PRIVATE_FILES:
        found += [f"{module} uses {name}" for name in foreign_private_attributes(source)]
    return found


def modules() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "edge").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    found.pop("edge")
    return found


def test_every_module_follows_the_import_rules() -> None:
    assert [fault for module, source in modules().items() for fault in faults(module, source)] == []


def import_cycles(sources: dict[str, str]) -> list[list[str]]:
    """Groups of modules that import each other, directly or indirectly. Imports for type checkers count, too."""
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


def test_there_are_no_import_cycles() -> None:
    assert import_cycles(modules()) == []


def test_import_cycle_is_detected() -> None:
    sources = {"a": "import b", "b": "if TYPE_CHECKING:\n    import c", "c": "def f():\n    import a", "d": "import a"}
    assert import_cycles(sources) == [["a", "b", "c"]]


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
        ("edge.signalling.commands", "from edge.sessions.service import SessionService"),
        ("edge.client.camera_client", "from edge.signalling.commands import Commands"),
        ("edge.client.camera_client", "from edge.core.lane import Lane"),
        ("edge.settings", "from edge.camera.process import CameraProcess"),
        ("edge.sessions.session", "import aiortc"),
        ("edge.camera.watch", "from edge.signalling.outbox import Outbox"),
        ("edge.signalling.status", "from edge.camera.watch import CameraWatch"),
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
def test_violation_of_the_import_rules_is_detected(module: str, source: str) -> None:
    assert faults(module, source)


def test_the_camera_process_imports_only_the_standard_library_before_its_source() -> None:
    """pydantic alone takes 15 MB, on computers with little memory."""

    def imported(statement: str) -> set[str]:
        code = f"import sys; {statement}; print(*sys.modules)"
        command = [sys.executable, "-c", code]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return {name.partition(".")[0] for name in printed.split()}

    added = imported("import edge.camera.child") - imported("pass")
    assert added - sys.stdlib_module_names == {"edge"}
