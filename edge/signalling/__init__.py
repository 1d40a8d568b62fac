"""The meaning of the messages: commands, replies, status, events, the shadow and tokens."""
