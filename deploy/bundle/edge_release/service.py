"""The systemd service, its user and its units."""

from __future__ import annotations

import filecmp
import hashlib
import shutil

from edge_release.files import output, replace_file, run, run_or_raise
from edge_release.layout import (
    CREDENTIALS,
    CURRENT,
    DROP_INS,
    ETC,
    LOADED_FILES,
    PUBLIC_KEY,
    RELEASES,
    SERVICE,
    SETTINGS,
    SYSUSERS,
    UNITS,
    USER,
)
from edge_release.releases import installed, link


def prepare_directories() -> None:
    """Create the user and the directories that the unit expects."""
    systemd = RELEASES / (link(CURRENT) or installed()[-1]) / "share/edge-streamer/systemd"
    if not SYSUSERS.exists() or not filecmp.cmp(systemd / "sysusers.conf", SYSUSERS, shallow=False):
        SYSUSERS.parent.mkdir(parents=True, exist_ok=True)
        replace_file(SYSUSERS, (systemd / "sysusers.conf").read_bytes(), 0o644)
    run_or_raise("systemd-sysusers", str(SYSUSERS))
    ETC.mkdir(mode=0o755, exist_ok=True)
    CREDENTIALS.mkdir(mode=0o700, exist_ok=True)
    if SETTINGS.exists():
        shutil.chown(SETTINGS, "root", USER)
        SETTINGS.chmod(0o640)


def install_units(release: str, *, look: bool = False) -> bool:
    """Put the release's units in place; return whether any differed. `look`: change nothing.

    A drop-in's name begins with the first version of systemd that has its settings.
    """
    source = RELEASES / release / "share/edge-streamer/systemd"
    version = int(output("systemctl", "--version").split()[1])
    wanted = {UNITS / unit.name: unit for unit in source.glob("*.service")}
    wanted |= {DROP_INS / conf.name: conf for conf in source.glob("[0-9]*.conf") if int(conf.name[:3]) <= version}
    stale = [path for path in DROP_INS.glob("[0-9][0-9][0-9]-*.conf") if path not in wanted]
    different = [
        (path, unit) for path, unit in wanted.items() if not (path.exists() and filecmp.cmp(path, unit, shallow=False))
    ]
    if not look and (different or stale):
        DROP_INS.mkdir(parents=True, exist_ok=True)
        for path, unit in different:
            replace_file(path, unit.read_bytes(), 0o644)
        for path in stale:
            path.unlink()
        run("systemctl", "daemon-reload")
    return bool(different or stale)


def files_digest() -> str:
    """Digest of what the daemon reads when it starts, apart from its settings: certificates, keys and passwords."""
    digest = hashlib.sha256()
    for path in sorted(ETC.rglob("*")):
        if path.is_file() and path != PUBLIC_KEY and not path.name.startswith(".") and ".toml" not in path.name:
            digest.update(f"{path}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def files_changed() -> bool:
    """Whether those files differ from the ones that a switch last started the service with."""
    return not LOADED_FILES.exists() or LOADED_FILES.read_text() != files_digest()


def record_loaded_files() -> None:
    """Called before a restart. Without a record, as on a full disk, the next `apply` restarts the service."""
    try:
        replace_file(LOADED_FILES, files_digest().encode(), 0o600)
    except OSError:
        LOADED_FILES.unlink(missing_ok=True)


def service_state() -> dict[str, str]:
    names = "ActiveState,NRestarts,ExecMainStatus"
    lines = output("systemctl", "show", "-p", names, SERVICE).splitlines()
    return {"ActiveState": "", "NRestarts": "0", "ExecMainStatus": ""} | dict(line.split("=", 1) for line in lines)
