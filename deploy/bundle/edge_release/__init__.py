"""The release tool of a device, one zip file there. Standard library alone: it works when a release does not."""
