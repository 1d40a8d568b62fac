"""The MQTT topics of one device, and the check of a reply topic."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEVICE_ID = r"^[A-Za-z0-9_-]{1,64}$"
# This keeps AWS IoT's limits, 256 bytes and 7 slashes: below the prefix there are at most three short levels.
TOPIC_PREFIX = r"^[A-Za-z0-9_-]{1,28}(/[A-Za-z0-9_-]{1,28}){0,3}$"
_CLIENT_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of a device under a prefix."""

    device: str
    prefix: str = "edge/v1"

    @property
    def command(self) -> str:
        return f"{self.prefix}/{self.device}/command"

    @property
    def status(self) -> str:
        return f"{self.prefix}/{self.device}/status"

    @property
    def event(self) -> str:
        return f"{self.prefix}/{self.device}/event"

    @property
    def telemetry(self) -> str:
        return f"{self.prefix}/{self.device}/telemetry"

    def reply(self, client: str) -> str:
        return f"{self.prefix}/{self.device}/reply/{client}"

    def reply_client(self, topic: str) -> str | None:
        """The client of this reply topic; None if it is not a reply topic of this device."""
        prefix = self.reply("")
        client = topic.removeprefix(prefix)
        if not topic.startswith(prefix) or not _CLIENT_ID.fullmatch(client):
            return None
        return client

    def shadow(self, *, at_aws: bool) -> ShadowTopics:
        """The topics of the thing's shadow `edge` at AWS IoT, or the same topics below the project's prefix."""
        base = f"$aws/things/{self.device}/shadow/name/edge" if at_aws else f"{self.prefix}/{self.device}/shadow"
        return ShadowTopics(base, at_aws)


@dataclass(frozen=True, slots=True)
class ShadowTopics:
    """The topics of one shadow."""

    base: str
    at_aws: bool

    @property
    def get(self) -> str:
        return f"{self.base}/get"

    @property
    def get_accepted(self) -> str:
        return f"{self.base}/get/accepted"

    @property
    def get_rejected(self) -> str:
        return f"{self.base}/get/rejected"

    @property
    def update(self) -> str:
        return f"{self.base}/update"

    @property
    def update_accepted(self) -> str:
        return f"{self.base}/update/accepted"

    @property
    def update_rejected(self) -> str:
        return f"{self.base}/update/rejected"

    @property
    def to_device(self) -> tuple[str, ...]:
        """The topics that the device subscribes to. At AWS IoT the service answers requests."""
        if not self.at_aws:
            return (self.delta,)
        return (self.get_accepted, self.get_rejected, self.update_accepted, self.update_rejected, self.delta)

    @property
    def delta(self) -> str:
        return f"{self.base}/update/delta"
