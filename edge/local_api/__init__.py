"""The technician's door: a small page and API on the machine itself, up with or without broker and camera."""
