"""Paths and limits on a device."""

from __future__ import annotations

from pathlib import Path

SERVICE = "edge-streamer.service"
SWITCH_SERVICE = "edge-streamer-switch.service"
FIREWALL_SERVICE = "edge-streamer-firewall.service"
USER = "edge-streamer"
OPT = Path("/opt/edge-streamer")
RELEASES, CURRENT, PREVIOUS = OPT / "releases", OPT / "current", OPT / "previous"
SWITCH = OPT / "switch.json"
LAST_SWITCH = Path("/run/edge-release-last-switch.json")
"""The result of the last switch; in memory, so that a full disk cannot hide it."""
LOADED_FILES = OPT / "loaded-files.sha256"
"""The certificates, keys and passwords that the service was last started with."""
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
    UNITS / FIREWALL_SERVICE,
    Path("/etc/edge-streamer-firewall.nft"),
]

OPERATING_SYSTEMS = {("debian", "12"), ("debian", "13")}
PACKAGES = {"numpy": "python3-numpy", "systemd.daemon": "python3-systemd"}
"""The packages that apt must have installed, by a module of each."""
KEPT_RELEASES = 2
FREE_BYTES = 600 * 1024**2
MAX_MEMBERS, MAX_UNPACKED_BYTES = 2000, 1024**3
CRASHES = 3
SETTINGS_REJECTED = 78
"""The exit status of `edge-streamer check-config` for faulty settings."""
POLL_S = 0.2
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 10.0, 800.0  # edge-streamer-switch.service may run for 900 s
ATTEMPTS = 3
RETURN_TIMEOUT_S = 60.0
FIRST_TIMEOUT_S = 45.0
