"""The client for Python backends: controls cameras over MQTT."""

from edge.client.camera_client import CameraClient, RemoteCamera
from edge.client.tokens import Signer

__all__ = ["CameraClient", "RemoteCamera", "Signer"]
