"""The one script. That it sets up what it needs is shown by the demo's test on a fresh checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEV = ROOT / "dev"


def dev(*arguments: str, path: str = "/usr/bin:/bin", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": "/nonexistent", **more}
    return subprocess.run(
        [str(DEV), *arguments], capture_output=True, text=True, env=environment, check=False, timeout=30
    )


def test_it_is_posix_sh() -> None:
    assert DEV.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", str(DEV)], check=False).returncode == 0


def test_alone_it_lists_its_commands() -> None:
    told = dev()
    assert told.returncode == 0
    for command in ("demo", "test", "lint", "fuzz", "bench", "shell", "lock"):
        assert f"\n  {command}" in told.stdout


def test_an_unknown_command_is_told() -> None:
    told = dev("dance")
    assert told.returncode == 2
    assert "no such command: dance" in told.stderr


def test_an_unknown_benchmark_is_told() -> None:
    told = dev("bench", "dance")
    assert told.returncode == 1
    assert "no benchmark of this name: dance" in told.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the tools of any system and no Python."""
    for name in ("sh", "cat", "cksum", "dirname", "id", "tr", "flock", "rm", "awk"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def test_without_a_python_it_says_which(tools: Path) -> None:
    told = dev("demo", path=str(tools))
    assert told.returncode == 1
    assert told.stderr.strip() == (
        "dev: no Python 3.11 to 3.13 found; install python3, or name one: PYTHON=/path/to/python3 ./dev ..."
    )


def test_a_python_that_is_too_old_or_broken_is_passed_over(tools: Path) -> None:
    for name, text in (("python3", "#!/bin/sh\nexit 1\n"), ("python3.12", "#!/bin/sh\nexit 127\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    assert "no Python 3.11 to 3.13 found" in dev("demo", path=str(tools)).stderr


def test_packages_that_cannot_be_installed_are_listed_in_one_line(tools: Path) -> None:
    """As somebody without root and without sudo, on a machine with only a Python."""
    (tools / "python3").symlink_to("/usr/bin/python3")
    (tools / "id").unlink()
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    told = dev("test", path=str(tools))
    assert told.returncode == 1
    (line,) = told.stderr.strip().splitlines()
    assert "apt-get install" in line
    for package in ("chromium", "coturn", "faketime", "gcc", "libsystemd-dev"):
        assert package in line


def test_a_named_python_that_does_not_fit_is_told() -> None:
    told = dev("demo", PYTHON="/nonexistent/python")
    assert told.returncode == 1
    assert told.stderr.strip() == "dev: PYTHON=/nonexistent/python is no Python 3.11 to 3.13 that runs here"


# A Python that makes an environment of itself, installs as told, and shows what else it is asked to run.
MACHINES = ("systemd-nspawn", "ip", "nft", "ssh", "nginx", "shellcheck")
STUB = """#!/bin/sh
case "$*" in
  "-c "*sys.executable*) echo "$0" ;;
  "-c import libcamera") [ -e has-libcamera ] ;;
  "-c "*) ;;
  -VV) echo "Python 3.11.99 (stub)" ;;
  -V) echo "Python 3.11.99" ;;
  "-m venv --without-pip --system-site-packages "*)
    mkdir -p "$5/bin" && cp "$0" "$5/bin/python" && echo venv+site >>made ;;
  "-m venv --without-pip "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>made ;;
  */pip\\ install*) ls -d .venv/edge-stamp-* 2>/dev/null >>stamps; echo pip >>made; [ ! -e pip-fails ] ;;
  "- "*) cat >/dev/null ;;
  *) echo "ran $*"; [ ! -e /proc/$$/fd/9 ] || echo "holds the lock" ;;
esac
"""


class Checkout:
    """The script with locks of its own and a stub for a Python: what it makes, and when."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copy(DEV, directory)
        (directory / "locks").mkdir()
        (directory / ".ci/pip").mkdir(parents=True)
        for name in ("locks/run.txt", "locks/dev.txt", "pyproject.toml", ".ci/pip/pip-1.whl"):
            (directory / name).write_text(name)
        tools = directory / "tools"
        tools.mkdir()
        # The system's packages are there, whatever this machine has.
        present = ("chromium", "mosquitto", "turnserver", "faketime", "debootstrap", *MACHINES, "gcc", "pkg-config")
        for name in present:
            (tools / name).write_text("#!/bin/sh\n")
        (tools / "python3").write_text(STUB)
        for name in (*present, "python3"):
            (tools / name).chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.directory}/tools:/usr/bin:/bin", "HOME": "/nonexistent"}
        return subprocess.Popen(
            [str(self.directory / "dev"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def dev(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def made(self) -> list[str]:
        """What was made since the last look."""
        log = self.directory / "made"
        made = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return made


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_an_environment_is_made_once(checkout: Checkout) -> None:
    assert checkout.dev("demo", "--x").stdout == "ran -m edge.demo --x\n"
    assert checkout.made() == ["venv", "pip"]
    assert checkout.dev("demo").returncode == 0
    assert checkout.made() == []


def test_tests_add_to_what_the_demo_made_and_the_demo_uses_what_the_tests_made(checkout: Checkout) -> None:
    checkout.dev("demo")
    assert checkout.made() == ["venv", "pip"]
    checkout.dev("test", "tests/unit")
    assert checkout.made() == ["pip"]
    checkout.dev("demo")
    assert checkout.made() == []


@pytest.mark.parametrize("changed", ["locks/run.txt", "pyproject.toml"])
def test_it_is_made_again_when_its_source_changed(checkout: Checkout, changed: str) -> None:
    checkout.dev("demo")
    checkout.made()
    (checkout.directory / changed).write_text("changed")
    checkout.dev("demo")
    assert checkout.made() == ["venv", "pip"]


def test_it_is_made_again_when_the_python_changed(checkout: Checkout) -> None:
    checkout.dev("test", "tests/unit")
    checkout.made()
    python = checkout.directory / "tools/python3"
    python.write_text(STUB.replace("3.11.99 (stub)", "3.12.0 (stub)"))
    checkout.dev("test", "tests/unit")
    assert checkout.made() == ["venv", "pip"]


def test_what_was_interrupted_is_made_anew(checkout: Checkout) -> None:
    checkout.dev("demo")
    (checkout.directory / "pip-fails").touch()
    told = checkout.dev("test", "tests/unit")
    assert told.returncode == 1
    assert "could not be installed" in told.stderr
    assert not (checkout.directory / "stamps").read_text()  # none while pip was at work
    (checkout.directory / "pip-fails").unlink()
    checkout.made()
    assert checkout.dev("test", "tests/unit").returncode == 0
    assert checkout.made() == ["venv", "pip"]


def test_beside_the_systems_camera_bindings_the_systems_numpy_is_kept(checkout: Checkout) -> None:
    """On a Raspberry Pi: apt's libcamera, and apt's simplejpeg that was built against apt's numpy."""
    fastapi, numpy, paho = (
        f"{name} \\\n    --hash=sha256:aa\n"
        for name in ("fastapi==1", "numpy==2 ; python_version >= '3.12'", "paho==3")
    )
    (checkout.directory / "locks/run.txt").write_text(fastapi + numpy + paho)
    checkout.dev("demo")
    assert checkout.made() == ["venv", "pip"]
    (checkout.directory / "has-libcamera").touch()
    checkout.dev("demo")
    assert checkout.made() == ["venv+site", "pip"]
    installed = (checkout.directory / ".venv/edge-lock.txt").read_text()
    assert installed == fastapi + paho
    checkout.dev("demo")
    assert checkout.made() == []


def test_what_runs_does_not_hold_the_lock(checkout: Checkout) -> None:
    assert "holds the lock" not in checkout.dev("demo").stdout


@pytest.mark.timeout(20)
def test_who_waits_for_the_tests_environment_uses_it(checkout: Checkout, tmp_path: Path) -> None:
    """A demo started while `test` makes .venv must not make it again under the tests' feet."""
    with (tmp_path / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with checkout.start("demo") as waiter:
            try:
                assert waiter.stderr
                assert waiter.stderr.readline() == "dev: waiting for another ./dev that makes .venv\n"
                # What `test` leaves when it is done, made in a second checkout.
                (tmp_path / "twin").mkdir()
                Checkout(tmp_path / "twin").dev("test", "tests/unit")
                shutil.copytree(tmp_path / "twin/.venv", tmp_path / ".venv")
                stamp = tmp_path / ".venv/edge-stamp-dev"
                stamp.write_text(stamp.read_text().replace(str(tmp_path / "twin"), str(tmp_path)))
                fcntl.flock(lock, fcntl.LOCK_UN)
                assert waiter.wait(10) == 0
            finally:
                if waiter.poll() is None:
                    os.killpg(waiter.pid, signal.SIGKILL)  # with the flock that it waits in
    assert checkout.made() == []


def test_quick_holds_with_arguments_too(checkout: Checkout) -> None:
    assert checkout.dev("test", "--quick", "tests/unit", "-x").stdout == "ran -m pytest -m not slow tests/unit -x\n"
    assert checkout.dev("test", "tests/unit").stdout == "ran -m pytest tests/unit\n"


def test_fuzzing_has_its_own_options(checkout: Checkout) -> None:
    assert checkout.dev("fuzz", "--inputs", "5").stdout == "ran -m tests.fuzz --inputs 5\n"


def test_the_hardware_tests_are_pytest_with_their_own_options(checkout: Checkout) -> None:
    told = checkout.dev("hw-test", "--minute", "5")
    assert told.stdout == "ran -m pytest -v -o pythonpath=. hw-tests hw-tests --minute 5\n", told.stderr


# A host on this machine, with a home of its own. The tests leave their report there, and fail.
SSH = """#!/bin/sh
[ "$1" != -t ] || shift
echo "$1" >>hosts
cd ../home && sh -c "$2" || exit
case $2 in *"./dev hw-test"*) echo measured >edge-streamer-hw-test/hw-tests/hw-report.json && exit 3 ;; esac
"""


def test_over_ssh_the_checkout_is_copied_and_the_report_comes_back(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    checkout, there = Checkout(tmp_path / "here"), tmp_path / "home/edge-streamer-hw-test"
    (checkout.directory / "tools/ssh").write_text(SSH)
    (checkout.directory / "tools/ssh").chmod(0o755)
    (checkout.directory / "hw-tests").mkdir()
    shutil.copy(ROOT / "hw-tests/over_ssh.sh", checkout.directory / "hw-tests")
    (checkout.directory / ".git").mkdir()
    for old in (there / "old.py", there / ".venv-3.13/old"):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.touch()
    told = checkout.dev("hw-test", "--ssh", "pi@camera", "--json", "report.json", "-k", "it's and that")
    assert told.stdout == "ran -m pytest -v -o pythonpath=. hw-tests hw-tests -k it's and that\n", told.stderr
    assert told.returncode == 3
    assert (checkout.directory / "report.json").read_text() == "measured\n"
    assert set((checkout.directory / "hosts").read_text().split()) == {"pi@camera"}
    assert (there / ".ci/pip/pip-1.whl").exists()
    assert not (there / "old.py").exists()
    assert not (there / ".git").exists()
    assert (there / ".venv-3.13/old").exists()


def test_lint_needs_no_programs_to_test_against(tools: Path) -> None:
    (tools / "python3").symlink_to("/usr/bin/python3")
    (tools / "id").unlink()
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    told = dev("lint", path=str(tools))
    assert "gcc" in told.stderr
    assert "chromium" not in told.stderr


def test_the_locks_name_hashes_and_no_host() -> None:
    for path in sorted((ROOT / "locks").glob("*.txt")):
        text = path.read_text()
        assert text.count("--hash=sha256:") > 100
        assert "://" not in text
