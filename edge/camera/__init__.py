"""The camera and its process: the sources, the protocol, and how the daemon starts, watches and replaces it."""
