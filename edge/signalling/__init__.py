"""What the messages mean: commands in, replies, status and events out, the shadow, tokens."""
