"""Prints the local API's OpenAPI document: `python -m edge.local_api.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

from edge.local_api.app import make_app

if __name__ == "__main__":
    nothing = cast("Any", None)  # no route is called
    json.dump(make_app(nothing, nothing, nothing, nothing, nothing).openapi(), sys.stdout, indent=2)
    sys.stdout.write("\n")
