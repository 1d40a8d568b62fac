"""Limits of one client at a broker. Those of AWS IoT suit every other broker, too.

Source: AWS IoT Core endpoints and quotas. The SDK does not enforce them; AWS IoT closes the connection.
"""

from __future__ import annotations

from edge.contract.messages import PAYLOAD_LIMIT_BYTES
from edge.core.budget import Budget

_TOPIC_LIMIT_BYTES, _TOPIC_LIMIT_SLASHES = 256, 7


def oversize(topic: str, payload: bytes) -> str | None:
    """Why a message exceeds the limits; None: it does not."""
    if len(topic.encode()) > _TOPIC_LIMIT_BYTES or topic.count("/") > _TOPIC_LIMIT_SLASHES:
        return f"the topic exceeds {_TOPIC_LIMIT_BYTES} bytes or {_TOPIC_LIMIT_SLASHES} slashes"
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        return f"the message has {len(payload)} bytes; the limit is {PAYLOAD_LIMIT_BYTES}"
    return None


def publish_budget(per_s: int) -> Budget:
    """A budget of `per_s` messages in any second; a fifth of them may be sent at once."""
    burst = max(1.0, per_s / 5)
    return Budget(per_s=max(per_s - burst, per_s / 2), burst=burst)
