"""Booted Debian machines, each with its own systemd and address, on a network for the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.rigs.cached_root import CachedRoot

if TYPE_CHECKING:
    from collections.abc import Callable

_RECIPE = Path(__file__).parent / "booted"
_RUN = Path("/run/edge-tests")
_BOOT_TIMEOUT_S = 60
_RIGHTS = ["--system-call-filter=bpf", "--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON"]  # for device rules of units
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def root_of(suite: str, *, packages: bool) -> Path:
    """The root of a suite, built if it is missing. `packages`: with those that an installation gets by apt."""
    root = (
        CachedRoot(f"booted-{suite}-packages", _RECIPE, suite, "python3-numpy python3-systemd")
        if packages
        else CachedRoot(f"booted-{suite}", _RECIPE, suite)
    )
    with root.built():
        return root.path


class Network:
    """A bridge with the addresses 10.77.N.0/24, through which its machines reach the package mirror."""

    def __init__(self) -> None:
        _RUN.mkdir(parents=True, exist_ok=True)
        _clean_up()
        self.number = next(n for n in range(1, 250) if self._made(n))
        self.name = f"edge{self.number}"
        self.host = f"10.77.{self.number}.1"
        (_RUN / f"{self.name}.owner").write_text(str(os.getpid()))
        _sh("ip", "address", "add", f"{self.host}/24", "dev", self.name)
        _sh("ip", "link", "set", self.name, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        rule = f'ip saddr 10.77.{self.number}.0/24 oifname != "{self.name}" masquerade;'
        chain = f"chain out {{ type nat hook postrouting priority srcnat; {rule} }}"
        _sh("nft", f"table ip {self.name} {{ {chain}; }}")
        self._last = 9

    @staticmethod
    def _made(number: int) -> bool:
        return _try("ip", "link", "add", f"edge{number}", "type", "bridge").returncode == 0

    def join(self) -> tuple[str, str]:
        """Make a network namespace on the bridge; return its name and its address."""
        self._last += 1
        name, address = f"{self.name}-{self._last}", f"10.77.{self.number}.{self._last}"
        _sh("ip", "netns", "add", name)
        outer = f"e{self.number}v{self._last}"
        _sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "host0", "netns", name)
        _sh("ip", "link", "set", outer, "master", self.name, "up")
        _sh("ip", "-n", name, "link", "set", "lo", "up")
        _sh("ip", "-n", name, "address", "add", f"{address}/24", "dev", "host0")
        _sh("ip", "-n", name, "link", "set", "host0", "up")
        _sh("ip", "-n", name, "route", "add", "default", "via", self.host)
        return name, address

    def remove(self) -> None:
        _remove_network(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Machine:
    """A machine, which the context manager boots and removes.

    `packages`: those that an installation gets by apt are installed.
    `disk_mb`: the machine has its own disk of that size, which can be filled and broken.
    """

    def __init__(
        self, network: Network, suite: str, name: str, *, packages: bool = False, disk_mb: int | None = None
    ) -> None:
        self.name = name
        self.suite = suite
        self.namespace, self.address = network.join()
        self._lower = root_of(suite, packages=packages)
        self.ssh_key = self._lower / "ssh-key"
        self._dir = _RUN / self.namespace
        shutil.rmtree(self._dir, ignore_errors=True)
        self._disk = self._dir / "disk"
        self.root = self._dir / "root"
        self._limited = disk_mb is not None
        for directory in (self._disk, self.root):
            directory.mkdir(parents=True)
        if disk_mb is not None:
            image = self._dir / "disk.img"
            with image.open("wb") as file:
                file.truncate(disk_mb * 1024**2)
            _sh("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self, *, read_only: bool = False) -> None:
        """Boot from the same disk as before, and wait until systemd has started all units."""
        if self._limited and not os.path.ismount(self._disk):
            _sh("mount", "-o", "loop", str(self._dir / "disk.img"), str(self._disk))
        for directory in ("upper", "work"):
            (self._disk / directory).mkdir(exist_ok=True)
        if not os.path.ismount(self.root):
            layers = f"lowerdir={self._lower},upperdir={self._disk}/upper,workdir={self._disk}/work"
            _sh("mount", "-t", "overlay", "-o", layers, "edge-machine", str(self.root))
        groups = Path("/sys/fs/cgroup/unified")
        group = (groups if groups.is_dir() else groups.parent) / self.namespace
        group.mkdir(exist_ok=True)
        command = ["systemd-nspawn", "-q", "-D", str(self.root), "--boot", "--register=no", "--keep-unit"]
        command += ["--private-users=no", "-M", self.name, "--console=read-only", "--resolv-conf=off", "--timezone=off"]
        command += [f"--network-namespace-path=/run/netns/{self.namespace}", *_RIGHTS]
        if read_only:
            command += ["--read-only", "--tmpfs=/var/log:mode=755", "--tmpfs=/var/tmp:mode=1777"]

        # In its own group, because nspawn would otherwise leave one at the root.
        into_group = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs")]
        with (self._dir / "console.log").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [*into_group, *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        (self._dir / "nspawn.pid").write_text(str(self._nspawn.pid))
        self._wait(self._booted, _BOOT_TIMEOUT_S, "boot")

    def _booted(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, (self._dir / "console.log").read_text()[-3000:]
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def try_run(
        self, *command: str, stdin: str | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root. The caller checks the exit status."""
        environment = ["env", "-i", "-C", "/", _PATH, "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"]
        return subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", *environment, *command],
            check=False,
            text=True,
            input=stdin or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )

    def run(self, *command: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        """Run a command inside that must succeed; return its output with standard error merged into it."""
        done = self.try_run(*command, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, f"{self.name}: {command}: {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def shell(self, script: str, timeout_s: float = 300) -> str:
        return self.run("sh", "-eu", stdin=script, timeout_s=timeout_s)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file on the running machine's disk."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return self.run("cat", path)

    def journal(self, unit: str, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "-u", unit, *options)

    def journal_rows(self, unit: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal(unit, "-o", "json").splitlines()]

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-p", name, "--value", unit).strip()

    def wait(self, condition: Callable[[], object], timeout_s: float = 20, what: str = "") -> None:
        self._wait(condition, timeout_s, what)

    def _wait(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                console = (self._dir / "console.log").read_text(errors="replace")[-1500:]
                raise AssertionError(f"{self.name}: timed out after {timeout_s} s: {what}\n{console}")
            time.sleep(0.1)

    def cut(self) -> None:
        """Cut the power. Unsynced data may still reach the disk, because this machine's kernel keeps running."""
        assert self._nspawn is not None
        for pid in (self._leader, self._nspawn.pid):
            _try("kill", "-9", str(pid))
        self._nspawn.wait(20)
        self._nspawn = None
        self._wait(lambda: _try("umount", str(self.root)).returncode == 0, 20, "umount")

    def has_written(self, path: str) -> bool:
        """Whether the machine itself has written this file, which still exists. Works while the machine is off, too."""
        return (self._disk / "upper" / path.lstrip("/")).is_file()

    def reboot(self) -> None:
        """Reboot cleanly, as `systemctl reboot` does."""
        assert self._nspawn is not None
        self.try_run("systemctl", "reboot")
        self.wait_rebooted()

    def wait_rebooted(self, timeout_s: float = 60) -> None:
        """Wait until something inside reboots the machine, and boot it again: nspawn ends with status 133."""
        assert self._nspawn is not None
        self._nspawn.wait(timeout_s)
        self.boot()

    def fill_disk(self, free_mb: int = 0) -> None:
        """Leave this much free space on the disk; with 0, not even root can write."""
        assert self._limited
        free = shutil.disk_usage(self._disk).free // 1024**2
        _try("fallocate", "-l", f"{max(free - max(free_mb, 1), 1)}M", f"{self._disk}/filler")
        if not free_mb:
            _try("dd", "if=/dev/zero", f"of={self._disk}/filler2", "bs=1M")
            _try("dd", "if=/dev/zero", f"of={self._disk}/filler3", "bs=1k")

    def free_disk(self) -> None:
        for filler in self._disk.glob("filler*"):
            filler.unlink()

    def break_disk(self) -> None:
        """Make the disk read-only, as the kernel does for a failing SD card."""
        assert self._limited
        _sh("mount", "-o", "remount,abort", str(self._disk))

    def remove(self) -> None:
        if self._nspawn is not None:
            _try("kill", "-s", "SIGRTMIN+4", str(self._leader))
            try:
                self._nspawn.wait(15)
            except subprocess.TimeoutExpired:
                _try("kill", "-9", str(self._leader), str(self._nspawn.pid))
                self._nspawn.wait(15)
        _remove_machine(self._dir)

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _remove_machine(directory: Path) -> None:
    for mount in (directory / "root", directory / "disk"):
        if os.path.ismount(mount):
            _try("umount", "-l", str(mount))
    shutil.rmtree(directory, ignore_errors=True)
    for group in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd")):
        for below in sorted((group / directory.name).glob("**/"), reverse=True):
            _try("rmdir", str(below))


def _remove_network(name: str) -> None:
    namespaces = _try("ip", "-j", "netns", "list").stdout
    for row in json.loads(namespaces or "[]"):
        if row["name"].startswith(f"{name}-"):
            _try("ip", "netns", "delete", row["name"])
    _try("ip", "link", "delete", name)
    _try("nft", "delete", "table", "ip", name)
    (_RUN / f"{name}.owner").unlink(missing_ok=True)


def _clean_up() -> None:
    """Remove what a killed test run left behind."""
    for owner in _RUN.glob("edge*.owner"):
        if Path(f"/proc/{owner.read_text()}").exists():
            continue
        for directory in _RUN.glob(f"{owner.stem}-*"):
            if (pid := directory / "nspawn.pid").exists():
                leader = _try("pgrep", "-P", pid.read_text()).stdout.split()
                _try("kill", "-9", *leader, pid.read_text())
            _remove_machine(directory)
        _remove_network(owner.stem)


def _try(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, text=True, capture_output=True, stdin=subprocess.DEVNULL)


def _sh(*command: str) -> None:
    done = _try(*command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
