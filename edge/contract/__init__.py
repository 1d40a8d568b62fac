"""Messages on the wire, topics and codes: what the daemon, a backend and a browser rely on."""
