"""The technician's page and API on the device itself, which work without a broker and a camera."""
