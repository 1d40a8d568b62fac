"""Prints the local API's OpenAPI document: `python -m edge.local_api.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from edge.local_api.app import make_app

if TYPE_CHECKING:
    from edge.contract.messages import Status
    from edge.core.principal import Principal


class _Nothing:
    async def start(self, reason: str | None, caller: Principal) -> None: ...

    async def stop(self, reason: str | None, caller: Principal) -> None: ...

    def status(self) -> Status:
        raise NotImplementedError


if __name__ == "__main__":
    nothing = _Nothing()
    json.dump(make_app(nothing, nothing.status, lambda: None).openapi(), sys.stdout, indent=2)
    print()  # noqa: T201  the document's last line
