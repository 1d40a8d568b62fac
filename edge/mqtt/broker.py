"""The broker port: what signalling and the Python client need of any MQTT client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Message:
    """One publish, received or to be sent, at QoS 1. Response topic and correlation exist on MQTT 5 only."""

    topic: str
    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None


class Broker(Protocol):
    """A link to one broker that is made again by itself. Event loop only."""

    connected: bool
    error: str | None
    """Why there is no link, in words without secrets; while connected, what of it the broker does not grant."""
    dropped: int
    """Messages that came and were lost, since nobody could take them yet or in time."""
    optional_granted: bool
    """Whether the optional subscriptions were granted to this link, or the last one."""

    def listen(self, on_message: Callable[[Message], None], on_link: Callable[[bool], None]) -> None:
        """Set the receivers, before `run`: both are called in the event loop and must not block or raise.

        `on_link(True)` follows the broker's grant of all subscriptions, so nothing published after it is missed; the
        optional ones are then granted or not.
        """

    async def publish(self, message: Message) -> None:
        """Send, and wait for the broker's acknowledgement (with a deadline).

        Raises: BrokerLost: there is no link, it broke, or the acknowledgement did not come.
        Raises: Rejected: `too_large`, over the payload or topic limits; nothing was sent.
        """

    async def run(self, ready: asyncio.Event) -> None:
        """Keep the link until cancelled; `ready` is set at once, broker or no broker.

        On cancellation the link is closed cleanly, so that no last will is sent.
        """
