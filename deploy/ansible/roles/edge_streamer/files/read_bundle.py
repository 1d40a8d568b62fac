"""Print, as JSON, what a bundle is: its release, its one directory and its size. Runs on the controller.

    read_bundle.py BUNDLE <PUBLIC_KEY

Standard input may be empty; a public key makes the signature required. The release tool and the description are
compared with the checksums here, because the device runs that tool as root. The tool then checks everything else.
Exit status 1: standard error says in one sentence what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAMED_BY_SUMS = ("edge-release", "release.json")
REMEDY = "make one with ./dev bundle, and name the file that it prints"


def read(bundle: Path) -> tuple[str, dict[str, bytes]]:
    """The bundle's directory, and the content of the files that are checked here."""
    found: dict[str, bytes] = {}
    with tarfile.open(bundle, "r:") as archive:
        members = archive.getmembers()
        names = [posixpath.normpath(member.name) for member in members]
        tops = {name.split("/")[0] for name in names}
        if len(tops) != 1 or not re.fullmatch(r"edge-streamer-[A-Za-z0-9.+-]+", top := tops.pop()):
            sys.exit(f"{bundle} is not a bundle (it must hold one directory, edge-streamer-...): {REMEDY}")
        for name in (*NAMED_BY_SUMS, "SHA256SUMS", "SHA256SUMS.sig"):
            same = [member for member, path in zip(members, names, strict=True) if path == f"{top}/{name}"]
            # A second file of the same name would replace the one that is checked here.
            if len(same) > 1 or any(not member.isfile() for member in same):
                sys.exit(f"{bundle} is not a bundle ({name} is there twice, or is not a file): {REMEDY}")
            if same and (file := archive.extractfile(same[0])) is not None:
                found[name] = file.read()
    for name in (*NAMED_BY_SUMS, "SHA256SUMS"):
        if name not in found:
            sys.exit(f"{bundle} is not a bundle (it has no {name}): {REMEDY}")
    return top, found


def check_sums(bundle: Path, found: dict[str, bytes]) -> None:
    lines = found["SHA256SUMS"].decode().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in NAMED_BY_SUMS:
        if sums.get(name) != hashlib.sha256(found[name]).hexdigest():
            sys.exit(f"{bundle} is damaged ({name} does not match SHA256SUMS): copy it again")


def check_signature(bundle: Path, found: dict[str, bytes], public_key: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        key, sums, signature = (Path(directory) / name for name in ("release.pub", "SHA256SUMS", "SHA256SUMS.sig"))
        key.write_text(public_key + "\n")
        if "BEGIN PUBLIC KEY" not in public_key or openssl("pkey", "-pubin", "-in", str(key), "-noout"):
            sys.exit("edge_streamer_release_public_key is not a public key in PEM: see openssl pkey -pubout")
        if signature.name not in found:
            sys.exit(f"{bundle}: the bundle is not signed: make it with ./dev bundle --key")
        sums.write_bytes(found["SHA256SUMS"])
        signature.write_bytes(found["SHA256SUMS.sig"])
        arguments = ("-pubin", "-inkey", str(key), "-rawin", "-in", str(sums), "-sigfile", str(signature))
        if openssl("pkeyutl", "-verify", *arguments):
            sys.exit(f"{bundle}: the signature does not match edge_streamer_release_public_key: sign it with that key")


def openssl(*arguments: str) -> int:
    return subprocess.run(["openssl", *arguments], check=False, capture_output=True).returncode


def main() -> None:
    bundle, public_key = Path(sys.argv[1]), sys.stdin.read().strip()
    try:
        top, found = read(bundle)
        check_sums(bundle, found)
        description = json.loads(found["release.json"])
        print(
            json.dumps(
                {
                    **{name: description[name] for name in ("release", "architecture", "pythons")},
                    "directory": top,
                    "mb": bundle.stat().st_size // 1024**2 + 1,
                }
            )
        )
    except OSError as exc:
        sys.exit(f"{bundle} cannot be read ({exc.strerror}, looked in {Path.cwd()}): {REMEDY}")
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as exc:
        sys.exit(f"{bundle} is not a bundle ({exc}): {REMEDY}")
    if public_key and not shutil.which("openssl"):
        sys.exit("openssl is not installed on this machine: install it")
    if public_key:
        check_signature(bundle, found, public_key)


if __name__ == "__main__":
    main()
