"""Print, as JSON, what the role must know about a device before it changes anything. Reads only.

Arguments: the Debian packages that the device needs.
"""

import json
import pathlib
import shutil
import subprocess
import sys

ETC = pathlib.Path("/etc/edge-streamer")


def output(*command: str) -> str:
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    except OSError:  # a system without this program
        return ""


def read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


fields = (line.partition("=") for line in read("/etc/os-release").splitlines())
system = {key: value.strip('"') for key, _, value in fields}
states = dict(
    line.split(" ", 1) for line in output("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n").splitlines()
)
print(
    json.dumps(
        {
            "architecture": output("dpkg", "--print-architecture") or "unknown",
            "system": [system.get("ID"), system.get("VERSION_ID")],
            "system_name": system.get("PRETTY_NAME", "an unknown system"),
            "python": "{}.{}".format(*sys.version_info[:2]),
            "free_mb": shutil.disk_usage("/opt" if pathlib.Path("/opt").exists() else "/").free // 1024**2,
            "missing_packages": [name for name in sys.argv[1:] if not states.get(name, "").startswith("ii")],
            "boot": pathlib.Path("/boot/firmware/cmdline.txt").exists(),
            "kernel_accounts_memory": "cgroup_enable=memory" in read("/proc/cmdline").split(),
            "firewall": pathlib.Path("/etc/edge-streamer-firewall.nft").exists(),
            "files": [str(path.relative_to(ETC)) for path in ETC.glob("**/*") if path.is_file()],
        }
    )
)
