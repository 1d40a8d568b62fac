"""The camera, in a process of its own: the source port, the sources, and the daemon's hold on the process."""
