"""MQTT: the broker port, two clients for it, reconnects, TLS, and the device certificate."""
