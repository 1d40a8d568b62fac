"""./dev bundle: make one archive with everything that a device installs, for the Python of both systems.

    edge-streamer-0.1.0-3fa9c1d2-arm64.tar
      edge-streamer-0.1.0-3fa9c1d2-arm64/
        install.sh, edge-release    the programs for the device
        release.json, SHA256SUMS, SHA256SUMS.sig
        requirements-3.11.txt, requirements-3.13.txt, wheels/, pip-*.whl
        systemd/, host/, docs/, edge-streamer.toml

The device needs no package registry. The release's name is the version and the hash of the content.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.13")  # Bookworm's and Trixie's
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
GLIBC = range(36, 16, -1)  # Bookworm has 2.36, and can use wheels for older ones
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bundle", description="Make the archive that devices install.")
    parser.add_argument("--arch", choices=MACHINES, default="arm64", help="of the devices (default: %(default)s)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign with this Ed25519 private key (PEM)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist/")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        try:
            content = Path(directory) / "content"
            content.mkdir()
            version = collect(content, chosen.arch)
            name = describe(content, version, chosen.arch)
            sign(content, chosen.key)
            chosen.out.mkdir(parents=True, exist_ok=True)
            archive = pack(content, chosen.out / f"{name}.tar")
        except subprocess.CalledProcessError as exc:
            print(f"bundle: {Path(exc.cmd[0]).name} failed, see above", file=sys.stderr)
            return 1
    print(f"bundle: {archive.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    print(archive)
    return 0


def collect(content: Path, architecture: str) -> str:
    """Collect all files except release.json and the checksums; return the project's version."""
    say("building the project's wheel")
    wheels = content / "wheels"
    wheels.mkdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels],
        cwd=ROOT,
        check=True,
        stdout=sys.stderr,
    )
    (own,) = wheels.glob("*.whl")
    version = own.name.split("-")[1]
    for python in PYTHONS:
        say(f"getting the wheels for Python {python} on {architecture}")
        requirements = content / f"requirements-{python}.txt"
        requirements.write_text(locked_for(python, MACHINES[architecture]))
        download(requirements, wheels, python, MACHINES[architecture])
        with requirements.open("a") as file:
            file.write(f"edge-streamer=={version} --hash=sha256:{digest(own)}\n")
    shutil.copy(next((ROOT / ".ci/pip").glob("pip-*.whl")), content)
    for part in ("systemd", "host"):
        shutil.copytree(ROOT / "deploy" / part, content / part)
    (content / "docs").mkdir()
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, content / "docs")
    shutil.copy(ROOT / "config/edge-streamer.toml", content)
    shutil.copy(ROOT / "deploy/bundle/install.sh", content)
    (content / "edge-release").write_bytes(release_tool())
    (content / "edge-release").chmod(0o755)
    return version


def locked_for(python: str, machine: str) -> str:
    """The lock's packages for this Python and machine. Without markers: pip would evaluate those for its own Python."""
    environment = {
        "implementation_name": "cpython",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    lines = []
    for entry in re.sub(r"\\\n\s*", "", (ROOT / "locks/device.txt").read_text()).splitlines():
        text, *hashes = entry.split("--hash=")
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            lines.append(
                " ".join([f"{requirement.name}{requirement.specifier}", *(f"--hash={one.strip()}" for one in hashes)])
            )
    return "\n".join(lines) + "\n"


def download(requirements: Path, wheels: Path, python: str, machine: str) -> None:
    pip = next((ROOT / ".ci/pip").glob("pip-*.whl")) / "pip"
    command = [sys.executable, str(pip), "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--python-version", python, "--implementation", "cp"]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for glibc in GLIBC:
        command += ["--platform", f"manylinux_2_{glibc}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}", "-d", str(wheels), "-r", str(requirements)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def release_tool() -> bytes:
    """edge_release as one executable file, always with the same bytes."""
    packed = io.BytesIO(b"#!/usr/bin/python3\n")
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        start = b"import sys\nfrom edge_release.__main__ import main\nsys.exit(main())\n"
        archive.writestr(zipfile.ZipInfo("__main__.py", LONG_AGO), start)
        for file in sorted((ROOT / "deploy/bundle/edge_release").glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"edge_release/{file.name}", LONG_AGO), file.read_bytes())
    return packed.getvalue()


def describe(content: Path, version: str, architecture: str) -> str:
    """Write release.json and the checksums; return the archive's name."""
    release = f"{version}-{hashlib.sha256(checksums(content).encode()).hexdigest()[:8]}"
    commit = None
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True)
        commit = git.stdout.strip() or None
    description = {
        "release": release,
        "version": version,
        "architecture": architecture,
        "pythons": PYTHONS,
        "commit": commit,
    }
    (content / "release.json").write_text(json.dumps(description, indent=2) + "\n")
    (content / "SHA256SUMS").write_text(checksums(content))
    return f"edge-streamer-{release}-{architecture}"


def checksums(content: Path) -> str:
    files = sorted(path for path in content.rglob("*") if path.is_file())
    return "".join(f"{digest(path)}  {path.relative_to(content)}\n" for path in files)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sign(content: Path, key: Path | None) -> None:
    if key is not None:
        sums, signature = content / "SHA256SUMS", content / "SHA256SUMS.sig"
        subprocess.run(
            ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", sums, "-out", signature], check=True
        )


def pack(content: Path, archive: Path) -> Path:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        return member

    fresh = archive.with_suffix(".part")
    with tarfile.open(fresh, "w") as file:
        file.add(content, archive.stem, filter=plain)
    fresh.replace(archive)
    return archive


def say(message: str) -> None:
    print(f"bundle: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
