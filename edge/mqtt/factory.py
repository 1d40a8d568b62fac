"""Makes the broker that the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import ConfigInvalid
from edge.mqtt.provisioning import Provisioning

if TYPE_CHECKING:
    from edge.mqtt.broker import Broker, Message
    from edge.mqtt.settings import MqttSettings


def make_broker(
    mqtt: MqttSettings,
    client_id: str,
    subscriptions: tuple[str, ...],
    will: Message | None,
    optional: tuple[str, ...] = (),
) -> Broker:
    """A broker by the client that the settings name; the other one is not loaded.

    With a claim in the settings, a device without a certificate obtains one; its client id is then the thing's name.
    Raises: ConfigInvalid: AWS's client is wanted and not installed, or the new certificate could not be stored.
    """
    obtain_identity = Provisioning(mqtt, mqtt.claim, client_id).ensure if mqtt.claim else None
    if not mqtt.by_aws:
        from edge.mqtt.paho_broker import PahoBroker  # noqa: PLC0415

        return PahoBroker(mqtt, client_id, subscriptions, will, optional, obtain_identity=obtain_identity)
    try:
        from edge.mqtt.aws_broker import AwsBroker  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        said = 'mqtt.client: awsiotsdk is not installed (edge-streamer[aws]); client = "paho" does without'
        raise ConfigInvalid([said]) from exc
    return AwsBroker(mqtt, client_id, subscriptions, will, optional, obtain_identity=obtain_identity)
