"""All of it on one machine: an embedded broker, the daemon, a reference backend-for-frontend and its viewer page."""
