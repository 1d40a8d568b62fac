"""Unpack a bundle, check it, and check whether this machine can run it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_release.files import Refused, output, reason_of, run
from edge_release.layout import (
    FREE_BYTES,
    INSTALL_PREFIX,
    MAX_MEMBERS,
    MAX_UNPACKED_BYTES,
    OPERATING_SYSTEMS,
    PACKAGES,
    RELEASES,
    UNPACK,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def unpacked(source: Path, prefix: str = "edge-check-") -> Iterator[Path]:
    """The bundle as a directory. A tar file is unpacked on the disk, because /tmp may be in memory."""
    if source.is_dir():
        yield source.absolute()
        return
    with tempfile.TemporaryDirectory(prefix=prefix, dir=UNPACK, ignore_cleanup_errors=True) as directory:
        try:
            unpack(source, Path(directory))
        except OSError as exc:
            raise Refused(f"{source} cannot be unpacked: {reason_of(exc)}") from exc
        tops = list(Path(directory).iterdir())
        if len(tops) != 1 or not tops[0].is_dir():
            raise Refused(f"{source} is not a bundle: it does not hold one directory")
        yield tops[0]


def remove_interrupted() -> None:
    """Remove what an interrupted `install` had unpacked."""
    for directory in UNPACK.glob(f"{INSTALL_PREFIX}*"):
        shutil.rmtree(directory, ignore_errors=True)


def unpack(source: Path, directory: Path) -> None:
    try:
        with tarfile.open(source, "r:") as archive:
            members: list[tarfile.TarInfo] = []
            for member in archive:
                name = Path(member.name)
                if not (member.isfile() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                    raise Refused(f"the bundle is not safe to unpack ({member.name}): get it again from its maker")
                members.append(member)
                if len(members) > MAX_MEMBERS or sum(one.size for one in members) > MAX_UNPACKED_BYTES:
                    raise Refused("the bundle is larger than any release: get it again from its maker")
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                archive.extract(member, directory, set_attrs=True, numeric_owner=False)
    except (tarfile.TarError, EOFError) as exc:
        raise Refused(f"{source} is not a whole bundle ({exc}): copy it again") from exc


def check(bundle: Path, public_key: Path | None, *, packages: bool = True) -> dict[str, Any]:
    """Return the bundle's description. `packages`: also check that the packages from apt are installed.

    Raises: Refused: with one sentence that says what to do.
    """
    check_signature(bundle, public_key)
    check_sums(bundle)
    try:
        description: dict[str, Any] = json.loads((bundle / "release.json").read_text())
        check_machine(description)
    except (ValueError, KeyError, TypeError) as exc:
        raise Refused(f"{bundle} is not a bundle: release.json: {exc!r}") from exc
    missing = [package for module, package in PACKAGES.items() if packages and not has(module)]
    if missing:
        raise Refused(f"packages are missing: apt-get install {' '.join(missing)}")
    return description


def check_signature(bundle: Path, public_key: Path | None) -> None:
    if public_key is None:
        return
    signature = bundle / "SHA256SUMS.sig"
    if not signature.is_file():
        raise Refused(
            f"the bundle is not signed, and {public_key} requires a signature: make it with ./dev bundle --key"
        )
    arguments = ["-pubin", "-inkey", public_key, "-rawin", "-in", bundle / "SHA256SUMS", "-sigfile", signature]
    if run("openssl", "pkeyutl", "-verify", *map(str, arguments)).returncode:
        raise Refused(f"the bundle's signature does not match {public_key}: get the bundle again from its maker")


def check_sums(bundle: Path) -> None:
    try:
        lines = (bundle / "SHA256SUMS").read_text().splitlines()
    except OSError as exc:
        raise Refused(f"{bundle} is not a bundle: SHA256SUMS: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise Refused(f"{bundle} is not a bundle: SHA256SUMS is not text") from exc
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_symlink() or not path.is_dir()}
    if strange := sorted(present - set(wanted) - {"SHA256SUMS", "SHA256SUMS.sig"}):
        raise Refused(f"the bundle has a file that its checksums do not name: {strange[0]}")
    for name, digest in wanted.items():
        if name not in present or hashlib.sha256((bundle / name).read_bytes()).hexdigest() != digest:
            raise Refused(f"the bundle is damaged ({name}): copy it again")


def check_machine(description: dict[str, Any]) -> None:
    system = os_release()
    architecture = output("dpkg", "--print-architecture") if shutil.which("dpkg") else "unknown"
    if architecture in ("armhf", "armel", "i386"):
        raise Refused(f"this is a 32-bit system ({architecture}): flash the 64-bit Raspberry Pi OS, then try again")
    if (system.get("ID", ""), system.get("VERSION_ID", "")) not in OPERATING_SYSTEMS:
        name = system.get("PRETTY_NAME", "an unknown system")
        raise Refused(f"{name} is not supported: flash 64-bit Raspberry Pi OS Bookworm or Trixie")
    if architecture != description["architecture"]:
        wanted = f"./dev bundle --arch {architecture}"
        raise Refused(
            f"the bundle is for {description['architecture']}, this system is {architecture}: make one with {wanted}"
        )
    if python_version() not in description["pythons"]:
        supported = " and ".join(description["pythons"])
        raise Refused(f"python3 is {python_version()}, and the bundle is for {supported}: use the system's own python3")
    disk = next(path for path in (RELEASES, *RELEASES.parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if free < FREE_BYTES and not (RELEASES / description["release"] / "release.json").exists():
        raise Refused(f"{free // 1024**2} MB are free on {disk}, {FREE_BYTES // 1024**2} MB are needed: make room")


def os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path("/etc/os-release").read_text().splitlines()
        return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    return {}


def python_version() -> str:
    return output("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")


def has(module: str) -> bool:
    return run("/usr/bin/python3", "-c", f"import {module}").returncode == 0
