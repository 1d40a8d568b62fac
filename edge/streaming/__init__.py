"""From one encode to many viewers: the hub, the senders, the peers. The only room that says aiortc."""
