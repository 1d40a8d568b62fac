"""For every test: no deadlines for Hypothesis, since the machine is shared; tests under emulation only on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import pytest

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests under emulation run where they are asked for: `./dev test --arm64`, which is `pytest -m arm64`."""
    if config.option.markexpr != "arm64":
        emulated = [item for item in items if item.get_closest_marker("arm64")]
        items[:] = [item for item in items if item not in emulated]
        config.hook.pytest_deselected(items=emulated)
