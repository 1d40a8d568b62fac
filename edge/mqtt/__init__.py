"""MQTT: the broker port, its two clients, the link with its reconnects and TLS, the device certificate."""
