"""Print, as JSON, what the role has to know of a device before it changes anything. Reads only."""

import json
import pathlib
import shutil
import subprocess
import sys


def output(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


release = pathlib.Path("/etc/os-release").read_text().splitlines()
system = {key: value.strip('"') for key, _, value in (line.partition("=") for line in release)}
asked = sys.argv[1:]
states = dict(
    line.split(" ", 1) for line in output("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n").splitlines()
)
print(
    json.dumps(
        {
            "architecture": output("dpkg", "--print-architecture"),
            "system": [system.get("ID"), system.get("VERSION_ID")],
            "system_name": system.get("PRETTY_NAME"),
            "python": "{}.{}".format(*sys.version_info[:2]),
            "free_mb": shutil.disk_usage("/opt").free // 1024**2,
            "missing_packages": [name for name in asked if not states.get(name, "").startswith("ii")],
            "boot": pathlib.Path("/boot/firmware/cmdline.txt").exists(),
        }
    )
)
