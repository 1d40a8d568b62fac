"""The one session use case behind both doors: open, answer, trickle, close; start and stop the stream."""
