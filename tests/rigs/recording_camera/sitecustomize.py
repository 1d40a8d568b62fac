"""Makes the drawn camera write each access unit to the file $EDGE_RIG_RECORDING before it delivers it.

Python imports this module by itself when its directory is in PYTHONPATH. Only the camera process is changed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.camera.port import Opening
    from edge.core.access_unit import AccessUnit
    from edge.core.camera_controls import ControlValues


def record(path: str) -> None:
    from edge.camera.synthetic import SyntheticSource

    original = SyntheticSource.start

    def start(
        self: SyntheticSource, values: ControlValues, sink: Callable[[AccessUnit], None], failed: Callable[[str], None]
    ) -> Opening:
        def write(unit: AccessUnit) -> None:
            Path(path).write_bytes(unit.payload)
            sink(unit)

        return original(self, values, write, failed)

    SyntheticSource.start = start  # type: ignore[method-assign]


if "edge.camera.child" in sys.orig_argv:
    record(os.environ["EDGE_RIG_RECORDING"])
