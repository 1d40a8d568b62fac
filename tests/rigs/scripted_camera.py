"""A camera process over a source that a test scripts: `python -m tests.rigs.scripted_camera --fd N --settings JSON`.

The source draws as the synthetic one does. The control `fail` (`fail_sd`) calls the `failed` callback of that start (of
that SD encode), counted from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.camera import child
from edge.camera.port import Plan
from edge.camera.synthetic import SyntheticSource

if TYPE_CHECKING:
    from edge.camera.port import OnFailed, Opening, Sink
    from edge.core.camera_controls import ControlValues


class ScriptedSource(SyntheticSource):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(Plan(**settings["hd"]), Plan(**settings["sd"]), settings["keyframe_interval_s"])
        self._run_failed: list[OnFailed] = []
        self._sd_run_failed: list[OnFailed] = []

    def start(self, values: ControlValues, sink: Sink, failed: OnFailed) -> Opening:
        self._run_failed.append(failed)
        return super().start(values, sink, failed)

    def encode_sd(self, *, on: bool, failed: OnFailed = lambda _: None) -> None:
        if on:
            self._sd_run_failed.append(failed)
        super().encode_sd(on=on, failed=failed)

    def set_controls(self, values: ControlValues) -> None:
        if "fail" in values:
            self._run_failed[values["fail"]](f"run {values['fail']} failed")
        if "fail_sd" in values:
            self._sd_run_failed[values["fail_sd"]](f"SD encode {values['fail_sd']} failed")
        super().set_controls(values)


if __name__ == "__main__":
    child.source_for = ScriptedSource
    child.main()
