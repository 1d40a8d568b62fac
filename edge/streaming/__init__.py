"""From one encode to many viewers: hub, senders and peers. The only package that imports aiortc."""
