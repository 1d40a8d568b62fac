"""What a Python backend imports to talk to cameras over MQTT."""

from edge.client.camera_client import Camera, CameraClient
from edge.client.tokens import Signer

__all__ = ["Camera", "CameraClient", "Signer"]
