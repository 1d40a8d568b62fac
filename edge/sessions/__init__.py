"""The session use case for every interface: open, answer, trickle, close; start and stop the stream."""
