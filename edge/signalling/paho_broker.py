"""The broker port by paho-mqtt: any broker, MQTT 5 and 3.1.1."""

from __future__ import annotations

import logging

from paho.mqtt.enums import MQTTProtocolVersion

from edge.signalling.linked_broker import Link, LinkedBroker, opened
from edge.signalling.paho_link import PahoLink, VersionRefused

log = logging.getLogger(__name__)


class PahoBroker(LinkedBroker):
    """Only the connecting (name look-up, TCP, TLS) runs in a thread of its own; all else runs in the event loop."""

    async def _open(self) -> Link:
        if self._settings.version != "3.1.1":
            try:
                return await self._try(MQTTProtocolVersion.MQTTv5)
            except VersionRefused as exc:
                log.info("MQTT 5: %s; trying 3.1.1", exc.message)
        return await self._try(MQTTProtocolVersion.MQTTv311)

    async def _try(self, version: MQTTProtocolVersion) -> Link:
        return await opened(PahoLink(self._settings, self._client_id, version, self._will, self._receive))
