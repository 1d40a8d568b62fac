"""Install, list and remove releases; several lie side by side."""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from edge_release.bundle import check, python_version
from edge_release.files import Refused, log, reason_of, replace_file, run, run_or_raise
from edge_release.layout import (
    COMMAND,
    CURRENT,
    DROP_INS,
    ETC,
    FIREWALL_SERVICE,
    HOST_OPTIONS,
    KEPT_RELEASES,
    OPT,
    PREVIOUS,
    RELEASES,
    SERVICE,
    STATE,
    SWITCH_SERVICE,
    SYSUSERS,
    TOOL,
    UNITS,
    USER,
)

if TYPE_CHECKING:
    from pathlib import Path


def install(bundle: Path, public_key: Path | None) -> dict[str, Any]:
    description = check(bundle, public_key)
    release = description["release"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", release):
        raise Refused(f"the bundle's release name is not valid: {release}")
    target = RELEASES / release
    own = bundle / "edge-release"
    if not (TOOL.exists() and filecmp.cmp(own, TOOL, shallow=False)):
        TOOL.parent.mkdir(parents=True, exist_ok=True)
        replace_file(TOOL, own.read_bytes(), 0o755)
    if (target / "release.json").exists():
        log(f"{release} is installed already")
        return {"changed": False, "release": release}
    RELEASES.mkdir(parents=True, exist_ok=True)
    for interrupted in RELEASES.iterdir():
        if not (interrupted / "release.json").exists():
            shutil.rmtree(interrupted)
    log(f"installing {release}")
    try:
        make_release(bundle, target)
        os.sync()  # all of it is on disk before the file that says so
        replace_file(target / "release.json", (bundle / "release.json").read_bytes(), 0o644)
    except (OSError, subprocess.SubprocessError) as exc:
        shutil.rmtree(target, ignore_errors=True)
        raise Refused(f"{release} could not be installed: {reason_of(exc)}") from exc
    return {"changed": True, "release": release}


def make_release(bundle: Path, target: Path) -> None:
    run_or_raise("/usr/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", str(target))
    pip = next(bundle.glob("pip-*.whl")) / "pip"
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--no-deps"]
    options += ["--require-hashes", "--no-warn-script-location", "--root-user-action=ignore"]
    options += ["--find-links", str(bundle / "wheels"), "-r", str(bundle / f"requirements-{python_version()}.txt")]
    run_or_raise(str(target / "bin/python"), "-I", str(pip), "install", *options)
    for part in ("systemd", "host", "docs"):
        shutil.copytree(bundle / part, target / "share/edge-streamer" / part)
    # Loads everything once: rejects a release that cannot run on this system, and warms the cache for the switch.
    run_or_raise(str(target / "bin/python"), "-I", "-c", "import edge.daemon, awscrt.mqtt5")


def installed() -> list[str]:
    """Oldest first."""
    whole = [path for path in RELEASES.glob("*") if (path / "release.json").exists()]
    return [path.name for path in sorted(whole, key=lambda path: (path / "release.json").stat().st_mtime)]


def link(path: Path) -> str | None:
    """The release that the link names, or None."""
    return path.readlink().name if path.is_symlink() and (path / "release.json").exists() else None


def prune() -> None:
    """Keep the current and the previous release."""
    kept = {name for name in (link(CURRENT), link(PREVIOUS)) if name}
    for release in installed():
        if len(kept) >= KEPT_RELEASES and release not in kept:
            shutil.rmtree(RELEASES / release, ignore_errors=True)


def uninstall(*, purge: bool) -> dict[str, Any]:
    run("systemctl", "disable", "--now", "--quiet", SERVICE, SWITCH_SERVICE)
    if (UNITS / FIREWALL_SERVICE).exists():
        run("systemctl", "disable", "--now", "--quiet", FIREWALL_SERVICE)
    removed = [UNITS / SERVICE, UNITS / SWITCH_SERVICE, OPT, COMMAND, *HOST_OPTIONS]
    removed += sorted(DROP_INS.glob("[0-9][0-9][0-9]-*.conf"))
    mine = [ETC, STATE, SYSUSERS]
    removed += mine if purge else []
    removed = [path for path in [*removed, TOOL] if path.exists() or path.is_symlink()]
    for path in removed:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for directory in (DROP_INS, *(path.parent for path in HOST_OPTIONS[:2])):
        with contextlib.suppress(OSError):
            directory.rmdir()
    if purge:
        run("userdel", USER)
    run("systemctl", "daemon-reload")
    kept = [str(path) for path in mine if path.exists()]
    log("removed: " + (" ".join(map(str, removed)) or "nothing"))
    log("kept: " + (" ".join(kept) + " and the user edge-streamer; --purge removes them, too" if kept else "nothing"))
    return {"changed": bool(removed), "removed": [str(path) for path in removed], "kept": kept}
