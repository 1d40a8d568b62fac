"""Check the role's variables on the controller, before anything is changed.

Standard input: JSON with device_id, settings, files, credentials, gate_timeout_s, journald_max_use,
firewall and lists.
Standard output: JSON with `faults`, one sentence each, and `missing`, the files below /etc/edge-streamer that the
settings name and that the variables do not supply. No fault shows the content of a file.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ETC = "/etc/edge-streamer/"
CREDENTIAL = "credential:"
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def faults(given: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(given["device_id"])):
        yield (
            f"edge_streamer_device_id: {given['device_id']} has other characters than letters, digits, - and _, "
            "or is too long: rename the device"
        )
    for variable, value in given["lists"].items():
        if not isinstance(value, list):
            yield f"{variable} is not a list: write [a, b], or one item a line with - before it"
    if not 10 <= float(given["gate_timeout_s"]) <= 800:
        yield f"edge_streamer_gate_timeout_s: {given['gate_timeout_s']} is not between 10 and 800"
    if not re.fullmatch(r"([0-9]+[KMGT]?)?", str(given["journald_max_use"])):
        yield f"edge_streamer_journald_max_use: {given['journald_max_use']} is not a size such as 200M"
    for name, section in given["settings"].items():
        if not isinstance(section, dict):
            yield f"edge_streamer_settings: {name} is not a section: write its keys below it, indented"
    yield from firewall_faults(given)
    for variable in ("files", "credentials"):
        yield from file_faults(f"edge_streamer_{variable}", given[variable])
    yield from jwks_faults(given)


def firewall_faults(given: dict[str, Any]) -> Iterator[str]:
    ports = given["lists"].get("edge_streamer_firewall_tcp_ports")
    for port in ports if isinstance(ports, list) else []:
        if not re.fullmatch(r"[0-9]{1,5}", str(port)) or not 1 <= int(port) <= 65535:
            yield f"edge_streamer_firewall_tcp_ports: {port} is not a port from 1 to 65535"
    ice = given["settings"].get("ice")
    lowest, highest = (ice.get(f"udp_port_{end}") if isinstance(ice, dict) else None for end in ("min", "max"))
    is_range = type(lowest) is int and type(highest) is int and 1024 <= lowest <= highest <= 65535
    if given["firewall"] and not is_range:
        yield (
            "edge_streamer_firewall needs a range of UDP ports: set ice.udp_port_min and ice.udp_port_max in "
            "edge_streamer_settings, for example to 50000 and 50099"
        )


def file_faults(variable: str, contents: dict[str, Any]) -> Iterator[str]:
    for name, content in contents.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            yield f"{variable}: {name} is not a plain file name: leave out directories and special characters"
        elif not str(content).strip():
            yield f"{variable}: {name} is empty"
        elif name.endswith(".pem"):
            yield from certificate_faults(variable, name, str(content), contents.get(f"{name[:-4]}.key"))


def certificate_faults(variable: str, name: str, content: str, key: object) -> Iterator[str]:
    """`key`: the private key of the same name, if there is one. Only the first certificate can be the key's."""
    certificates = CERTIFICATE.findall(content)
    if not certificates:
        yield f"{variable}: {name} is not a certificate in PEM: use the right file"
    for certificate in certificates:
        status, start = openssl(certificate, "x509", "-noout", "-checkend", "0", "-startdate")
        if "notBefore=" not in start:
            yield f"{variable}: {name} is not a certificate in PEM: use the right file"
        elif ssl.cert_time_to_seconds(re.findall(r"notBefore=(.*)", start)[0]) > time.time():
            yield f"{variable}: {name} is not valid yet: check this machine's clock, or get a new one"
        elif status != 0:
            yield f"{variable}: {name} has expired: get a new one"
    if certificates and key is not None:
        _, own = openssl(certificates[0], "x509", "-noout", "-pubkey")
        _, pair = openssl(str(key), "pkey", "-pubout", "-passin", "pass:")
        if own and own != pair:
            yield f"{variable}: {name[:-4]}.key does not belong to {name}: use the key of that certificate"


def jwks_faults(given: dict[str, Any]) -> Iterator[str]:
    auth = given["settings"].get("auth")
    named = str(auth.get("jwks_file", "")).removeprefix(ETC) if isinstance(auth, dict) else ""
    for name in sorted({"jwks.json", named} & set(given["files"])):
        try:
            content = given["files"][name]
            keys = (json.loads(content) if isinstance(content, str) else content)["keys"]
            ok = isinstance(keys, list) and keys and all(isinstance(key, dict) for key in keys)
        except (ValueError, KeyError, TypeError):
            ok = False
        if not ok:
            yield f'edge_streamer_files: {name} has no public keys ({{"keys": [...]}}): see edge-streamer token keygen'


def needed(value: object) -> Iterator[str]:
    """The files below /etc/edge-streamer that a value of the settings names."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from needed(one)
    elif isinstance(value, str) and value.startswith(CREDENTIAL):
        yield "credentials/" + value.removeprefix(CREDENTIAL)
    elif isinstance(value, str) and value.startswith(ETC):
        yield value.removeprefix(ETC)


def openssl(stdin: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True, input=stdin + "\n")
    return done.returncode, done.stdout


def main() -> None:
    given = json.load(sys.stdin)
    supplied = {*given["files"], *(f"credentials/{name}" for name in given["credentials"])}
    missing = sorted(set(needed(given["settings"])) - supplied)
    found = list(faults(given)) if shutil.which("openssl") else ["openssl is not installed on this machine: install it"]
    print(json.dumps({"faults": found, "missing": missing}))


if __name__ == "__main__":
    main()
