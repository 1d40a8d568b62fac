"""MQTT: the broker port and its adapters, commands in, replies, status and events out."""
