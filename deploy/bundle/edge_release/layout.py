"""Where everything lies on a device."""

from __future__ import annotations

from pathlib import Path

SERVICE = "edge-streamer.service"
SWITCH_SERVICE = "edge-streamer-switch.service"
USER = "edge-streamer"
OPT = Path("/opt/edge-streamer")
RELEASES, CURRENT, PREVIOUS = OPT / "releases", OPT / "current", OPT / "previous"
SWITCH, LAST_SWITCH = OPT / "switch.json", OPT / "last-switch.json"
ETC = Path("/etc/edge-streamer")
SETTINGS, NEXT_SETTINGS = ETC / "edge-streamer.toml", ETC / "edge-streamer.toml.next"
CREDENTIALS, PUBLIC_KEY = ETC / "credentials", ETC / "release.pub"
LOCK = Path("/run/edge-release.lock")
STATE = Path("/var/lib/edge-streamer")
UNITS = Path("/etc/systemd/system")
DROP_INS = UNITS / f"{SERVICE}.d"
UNPACK = Path("/var/tmp")  # noqa: S108  the directory in it is made by tempfile
INSTALL_PREFIX = "edge-release-"
SYSUSERS = Path("/etc/sysusers.d/edge-streamer.conf")
TOOL, COMMAND = Path("/usr/local/sbin/edge-release"), Path("/usr/local/bin/edge-streamer")
HOST_OPTIONS = [
    Path("/etc/systemd/journald.conf.d/edge-streamer.conf"),
    Path("/etc/systemd/system.conf.d/edge-streamer.conf"),
    Path("/etc/apt/apt.conf.d/51edge-streamer"),
]

OPERATING_SYSTEMS = {("debian", "12"), ("debian", "13")}
PACKAGES = {"numpy": "python3-numpy", "systemd.daemon": "python3-systemd"}
"""What apt has to have brought, by the module that is looked for."""
KEPT_RELEASES = 2
FREE_BYTES = 600 * 1024**2
MAX_MEMBERS, MAX_UNPACKED_BYTES = 2000, 1024**3
CRASHES = 3
POLL_S = 0.2
ATTEMPTS = 3
RETURN_TIMEOUT_S = 60.0
FIRST_TIMEOUT_S = 45.0
