"""The state of the stream on disk: it survives a restart, damage, and a slow or full disk."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.messages import StreamBody
from edge.core.access_unit import Quality
from edge.errors import Rejected
from edge.host.state_file import StateFile
from edge.sessions.desired_stream import DesiredStream
from tests.service.fakes import FakeStateStore
from tests.service.sessions.rig import ANNA, Rig, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.errors import EdgeError


async def test_unreadable_stream_state_counts_as_running(tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_text("{")
    assert DesiredStream(StateFile(tmp_path / "stream.json")).running
    for damaged in ('{"running": false, "reason": null, "bitrates": {"hd": Infinity}}', "[]", '{"running": 1}'):
        (tmp_path / "stream.json").write_text(damaged)
        assert DesiredStream(StateFile(tmp_path / "stream.json")).running


async def test_a_damaged_stream_state_is_read_from_its_copy(tmp_path: Path) -> None:
    first, copy = StateFile(tmp_path / "stream.json"), StateFile(tmp_path / "copy.json")
    desired = DesiredStream(first, copy)
    desired.change(running=False, reason="night", bitrates={})
    assert await desired.save()
    await until(lambda: copy.read() is not None)
    for damaged in ("{", '{"running": 1}', None):
        (tmp_path / "stream.json").write_text(damaged) if damaged else (tmp_path / "stream.json").unlink(True)
        found = DesiredStream(first, copy, lambda: "never asked")
        assert (found.running, found.reason) == (False, "night")


async def test_a_slow_copy_does_not_hold_up_a_stop_that_is_on_disk() -> None:
    first, copy = FakeStateStore(), FakeStateStore()
    copy.gate.clear()
    desired = DesiredStream(first, copy)
    for running in (False, True, False):
        desired.change(running=running, reason=None, bitrates={})
        async with asyncio.timeout(2):
            assert await desired.save()
        assert first.fields == {"running": running, "reason": None, "bitrates": {}}
    copy.gate.set()
    await until(lambda: copy.fields == first.fields)


async def test_a_slow_reserve_does_not_hold_up_a_stop_that_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateFile(tmp_path / "stream.json", reserve=True)
    go_on = threading.Event()
    keep = store._keep_reserve

    def slowly() -> None:
        assert go_on.wait(5)
        keep()

    monkeypatch.setattr(store, "_keep_reserve", slowly)
    async with asyncio.timeout(2):
        assert await store.write({"running": False})
    assert not (tmp_path / "stream.json.reserve").exists()
    later = asyncio.create_task(store.write({"running": True}))
    go_on.set()
    assert await later
    assert (tmp_path / "stream.json.reserve").stat().st_size == 64 * 1024


@pytest.mark.parametrize("stale", [None, {"running": True, "reason": None, "bitrates": {}}, {"running": 1}])
async def test_a_copy_that_differs_is_written_again_at_the_start(stale: dict[str, Any] | None) -> None:
    """The previous release writes the first file only."""
    first, copy = FakeStateStore(), FakeStateStore()
    first.fields, copy.fields = {"running": False, "reason": "night", "bitrates": {"hd": 500_000}}, stale
    assert not DesiredStream(first, copy).running
    await until(lambda: copy.fields == first.fields)
    first.fields = None
    assert not DesiredStream(first, copy).running


def test_a_stream_whose_stop_may_be_lost_stays_stopped() -> None:
    desired = DesiredStream(FakeStateStore(), FakeStateStore(), lambda: "the disk is full")
    assert (desired.running, desired.reason) == (False, "the disk is full")
    assert DesiredStream(FakeStateStore(), FakeStateStore(), lambda: None).running


async def test_stop_that_cannot_be_stored_takes_effect_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[EdgeError] = []
    (tmp_path / "missing").touch()
    desired = DesiredStream(StateFile(tmp_path / "missing" / "stream.json", failures.append))
    desired.change(running=False, reason=None, bitrates={})
    assert not await desired.save()
    assert not desired.running
    assert "state file not written" in caplog.text
    (error,) = failures
    assert "stream.json cannot be written (File exists)" in error.message


async def test_bitrate_limit_survives_a_restart(rig: Callable[..., Any], tmp_path: Path) -> None:
    async with rig() as h:
        await h.sessions.start(StreamBody.model_validate({"hd": {"max_bps": 900_000}, "sd": {}}), ANNA)
        assert h.cam.bitrates == {Quality.HD: 900_000}
        wrong = StreamBody.model_validate({"hd": {"min_bps": 1000}})
        with pytest.raises(Rejected, match=r"body.hd.min_bps: must be 100000 to 2000000"):
            await h.sessions.start(wrong, ANNA)
        # A limit that is left out stays as it was.
        await h.sessions.start(StreamBody.model_validate({"hd": {"min_bps": 200_000}, "sd": {}}), ANNA)
        assert h.cam.bitrates == {Quality.HD: 900_000}
        assert json.loads((tmp_path / "stream.json").read_text())["bitrates"] == {"hd": 900_000}
    assert Rig(tmp_path).cam.bitrates[Quality.HD] == 900_000
