"""The broker port with paho-mqtt, for any broker of MQTT 5 or 3.1.1."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTProtocolVersion

from edge.mqtt.link import Link, opened
from edge.mqtt.linked_broker import LinkedBroker
from edge.mqtt.paho_link import PahoLink, VersionRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.mqtt.broker import Message
    from edge.mqtt.settings import MqttSettings

log = logging.getLogger(__name__)


class PahoBroker(LinkedBroker):
    """Name look-up, TCP and TLS run in a thread; everything else runs in the event loop."""

    async def _open(
        self, settings: MqttSettings, client_id: str, will: Message | None, receive: Callable[[Message], None]
    ) -> Link:
        if settings.version != "3.1.1":
            try:
                return await opened(PahoLink(settings, client_id, MQTTProtocolVersion.MQTTv5, will, receive))
            except VersionRefused as exc:
                log.info("broker refused MQTT 5, trying 3.1.1 error=%s", exc.message)
        return await opened(PahoLink(settings, client_id, MQTTProtocolVersion.MQTTv311, will, receive))
