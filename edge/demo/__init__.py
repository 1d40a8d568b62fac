"""The demo on one machine: an embedded broker, the daemon, a reference backend and its viewer page."""
