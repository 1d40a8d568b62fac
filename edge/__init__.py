"""A camera daemon: one camera, encoded once, shown live to many over WebRTC."""

__version__ = "0.1.0"
