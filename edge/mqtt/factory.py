"""Makes the broker link with the MQTT client that the settings name."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from edge.errors import ConfigInvalid
from edge.mqtt.provisioning import Provisioning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.mqtt.broker import Broker, Message
    from edge.mqtt.device_certificate import AtomicFile
    from edge.mqtt.settings import MqttSettings


def missing_client(mqtt: MqttSettings) -> str | None:
    """The fault of settings whose MQTT client is not installed; None: it is."""
    if not mqtt.by_aws or importlib.util.find_spec("awscrt") is not None:
        return None
    return (
        "mqtt.client: awsiotsdk is not installed: pip install 'edge-streamer[aws]', or set client = \"paho\", "
        "which does not need it"
    )


def make_broker(
    mqtt: MqttSettings,
    client_id: str,
    subscriptions: tuple[str, ...],
    will: Message | None,
    optional: tuple[str, ...] = (),
    *,
    atomic_file: Callable[[Path], AtomicFile],
) -> Broker:
    """A broker link by the client that the settings name. The other client is not imported.

    With a claim in the settings, a device without a certificate obtains one; its client id is then the thing's name.
    `atomic_file`: how its key and its certificate are written.
    Raises: ConfigInvalid: AWS's client is not installed, or a new certificate could not be stored.
    """
    obtain_identity = Provisioning(mqtt, mqtt.claim, client_id, atomic_file).ensure if mqtt.claim else None
    if not mqtt.by_aws:
        from edge.mqtt.paho_broker import PahoBroker  # noqa: PLC0415

        return PahoBroker(mqtt, client_id, subscriptions, will, optional, obtain_identity=obtain_identity)
    if (fault := missing_client(mqtt)) is not None:
        raise ConfigInvalid([fault])
    from edge.mqtt.aws_broker import AwsBroker  # noqa: PLC0415

    return AwsBroker(mqtt, client_id, subscriptions, will, optional, obtain_identity=obtain_identity)
