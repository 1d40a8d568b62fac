"""Notifications to systemd over a real socket, and the journal."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from systemd import journal

from edge.host import systemd
from edge.host.journal import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def notify_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


def received(listener: socket.socket, count: int) -> list[str]:
    return [listener.recv(4096).decode() for _ in range(count)]


def waiting(listener: socket.socket) -> list[str]:
    listener.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096).decode())
        except BlockingIOError:
            listener.settimeout(5)
            return messages


async def test_systemd_gets_ready_status_watchdog_and_stopping(
    notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    line, trouble = "camera running, 1 viewers", None
    part = systemd.Supervision(lambda: line, lambda: trouble)
    task = asyncio.create_task(part.run(asyncio.Event()))
    first = await asyncio.to_thread(received, notify_socket, 4)
    assert first == ["READY=1", "STATUS=camera running, 1 viewers", "WATCHDOG=1", "WATCHDOG=1"]
    line = "camera closed, 0 viewers"
    assert "STATUS=camera closed, 0 viewers" in await asyncio.to_thread(received, notify_socket, 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting(notify_socket)[-1] == "STOPPING=1"


async def test_the_watchdog_of_an_unhealthy_daemon_is_not_notified(
    notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    task = asyncio.create_task(systemd.Supervision(lambda: "line", lambda: "a session is stuck").run(asyncio.Event()))
    await asyncio.sleep(0.2)
    task.cancel()
    assert waiting(notify_socket)[:2] == ["READY=1", "STATUS=line"]
    await asyncio.wait({task})
    assert "WATCHDOG=1" not in waiting(notify_socket)
    assert caplog.text.count("a session is stuck") == 1


def test_without_systemd_nothing_is_sent(notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")
    assert waiting(notify_socket) == []


def test_a_supervisor_that_does_not_read_does_not_block(notify_socket: socket.socket) -> None:
    for _ in range(1000):
        systemd.notify("WATCHDOG=1")
    assert "WATCHDOG=1" in waiting(notify_socket)


async def test_control_characters_do_not_reach_the_status_line(
    notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    supervision = systemd.Supervision(lambda: "camera failed (a\0b)\nSTOPPING=1", lambda: None)
    task = asyncio.create_task(supervision.run(asyncio.Event()))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait({task})
    assert "STATUS=camera failed (a b) STOPPING=1" in waiting(notify_socket)


async def test_a_status_line_that_cannot_be_composed_does_not_stop_the_watchdog(
    notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")

    def fail() -> str:
        raise ZeroDivisionError

    task = asyncio.create_task(systemd.Supervision(fail, lambda: None).run(asyncio.Event()))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait({task})
    assert waiting(notify_socket).count("WATCHDOG=1") > 1
    assert caplog.text.count("status line not composed because of a bug") == 1


def test_a_failed_notification_is_logged_once(notify_socket: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    notify_socket.close()
    for _ in range(3):
        systemd.notify("WATCHDOG=1")
    assert caplog.text.count("systemd notification failed") == 1


@pytest.mark.usefixtures("logging_restored")
def test_the_journal_receives_each_line_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    sent: list[dict[str, Any]] = []
    set_up_logging("info", lambda: "s1")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, journal.JournalHandler)
    handler.send = lambda message, /, **fields: sent.append({"MESSAGE": message, **fields})
    logging.getLogger("edge.sessions").info("live")
    assert sent[0]["MESSAGE"] == "edge.sessions [s1]: live"
    assert sent[0]["EDGE_SESSION"] == "s1"
    assert sent[0]["SYSLOG_IDENTIFIER"] == "edge-streamer"


@pytest.mark.usefixtures("logging_restored")
def test_without_a_journal_lines_go_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    set_up_logging("warning", lambda: None)
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(sys.stderr)
    logging.getLogger("edge.camera").info("not this")
    logging.getLogger("edge.camera").warning("but this")
    assert capsys.readouterr().err.endswith("WARNING edge.camera: but this\n")
