"""The first command on the page for backends, run as the page has it, against a real broker and a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.rigs.backend_page import PAGE
from tests.rigs.daemon import free_port
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = PAGE.read_text()


def documented(name: str) -> str:
    block = re.search(rf"<!-- run: {name} -->\n```sh\n(.*?)```", TEXT, re.DOTALL)
    assert block
    return block[1]


class Terminal:
    """A shell in its own directory. The environment sets this test's ports, so that the commands run unchanged."""

    def __init__(self, directory: Path, mqtt_port: int) -> None:
        self.directory = directory
        self.api_port = free_port()
        for client in ("mosquitto_pub", "mosquitto_sub"):
            (directory / client).write_text(f"-p {mqtt_port}\n")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(directory),
            "EDGE__MQTT__PORT": str(mqtt_port),
            "EDGE__API__PORT": str(self.api_port),
        }

    def start(self, commands: str) -> subprocess.Popen[str]:
        with (self.directory / "output").open("w") as output:
            return subprocess.Popen(
                ["bash", "-e", "-c", commands],
                cwd=self.directory,
                env=self.environment,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def run(self, commands: str) -> str:
        """What the commands print. Fails where one of them fails."""
        return subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=self.directory,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def broker_connected(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}/readyz", timeout=5) as answer:
                connected: bool = json.load(answer)["broker"] == "connected"
                return connected
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal beside one in which the page's device runs."""
    directory = tmp_path_factory.mktemp("first-command")
    broker = Mosquitto(directory)
    broker.start()
    terminal = Terminal(directory, broker.port)
    device = terminal.start(documented("device"))
    try:
        deadline_s = time.monotonic() + 30
        while not terminal.broker_connected():
            assert device.poll() is None, (directory / "output").read_text()
            assert time.monotonic() < deadline_s, (directory / "output").read_text()
            time.sleep(0.1)
        yield terminal
    finally:
        os.killpg(device.pid, signal.SIGTERM)
        device.wait(20)
        broker.stop()


def reply(output: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(output)
    return fields


def test_the_first_command_gets_the_status(terminal: Terminal) -> None:
    answer = reply(terminal.run(documented("command")))
    assert answer["ok"], answer
    assert answer["body"]["device"] == "cam-1"
    assert answer["body"]["camera"]["source"] in {"synthetic", None}


def test_the_first_command_of_the_page_prints_the_status(terminal: Terminal) -> None:
    named = "mosquitto_sub -t edge/v1/cam-1/status -C 1"
    assert f"`{named}`" in TEXT
    assert reply(terminal.run(f"{named} -W 10"))["online"]


@pytest.mark.slow
async def test_a_token_for_another_client_gets_its_reply_there_and_not_here(terminal: Terminal) -> None:
    commands = documented("command").replace("--scope view", "--scope view --client other").replace("-W 10", "-W 3")
    elsewhere = asyncio.create_task(
        asyncio.to_thread(terminal.run, "mosquitto_sub -t edge/v1/cam-1/reply/other -C 1 -W 20")
    )
    await asyncio.sleep(1)
    assert await asyncio.to_thread(terminal.run, commands) == ""
    assert reply(await elsewhere)["error"]["code"] == "forbidden"


@pytest.mark.parametrize("fault", ["no kid", "unknown kid", "another key"])
def test_a_token_by_no_known_key_gets_the_error_that_the_page_quotes(terminal: Terminal, fault: str) -> None:
    keys = terminal.directory / "keys"
    key: Any = (keys / "private.pem").read_text()
    headers = {"kid": json.loads((keys / "jwks.json").read_text())["keys"][0]["kid"]}
    if fault == "no kid":
        headers = {}
    elif fault == "unknown kid":
        headers["kid"] = "unknown"
    else:
        key = Ed25519PrivateKey.generate()
    claims = {"aud": "cam-1", "sub": "anna", "scope": "view", "jti": fault, "exp": int(time.time()) + 60}
    token = jwt.encode(claims, key, "EdDSA", headers=headers)
    error = reply(terminal.run(re.sub(r"TOKEN=.*", f"TOKEN={token}", documented("command"))))["error"]
    assert error["code"] == "unauthorized"
    assert f'`unauthorized`, `"{error["message"]}"`' in TEXT
