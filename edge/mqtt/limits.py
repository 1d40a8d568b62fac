"""What a broker takes of one client: AWS IoT's limits, which fit every other broker too.

Source: AWS IoT Core endpoints and quotas. The SDK does not refuse what is over them; AWS IoT hangs up.
"""

from __future__ import annotations

from edge.contract.messages import PAYLOAD_LIMIT_BYTES
from edge.core.budget import Budget

_TOPIC_LIMIT_BYTES, _TOPIC_LIMIT_SLASHES = 256, 7


def oversize(topic: str, payload: bytes) -> str | None:
    """In words what of a message is over the limits; None where it fits."""
    if len(topic.encode()) > _TOPIC_LIMIT_BYTES or topic.count("/") > _TOPIC_LIMIT_SLASHES:
        return "the topic is longer or deeper than brokers take"
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        return f"{len(payload)} bytes, the limit is {PAYLOAD_LIMIT_BYTES}"
    return None


def publish_budget(per_s: int) -> Budget:
    """At most `per_s` in any second, of which a fifth may leave at once."""
    burst = max(1.0, per_s / 5)
    return Budget(per_s=max(per_s - burst, per_s / 2), burst=burst)
