"""The script `dev`, with a stub for Python. The demo's test runs it on a fresh checkout."""

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


def test_script_is_valid_posix_sh() -> None:
    assert DEV.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", str(DEV)], check=False).returncode == 0


def test_no_arguments_lists_the_commands() -> None:
    result = dev()
    assert result.returncode == 0
    for command in ("demo", "test", "lint", "fuzz", "bench", "shell", "lock"):
        assert f"\n  {command}" in result.stdout


def test_unknown_command_is_an_error() -> None:
    result = dev("dance")
    assert result.returncode == 2
    assert "unknown command: dance" in result.stderr


def test_unknown_benchmark_is_an_error() -> None:
    result = dev("bench", "dance")
    assert result.returncode == 1
    assert "unknown benchmark: dance" in result.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the standard tools and without a Python."""
    for name in ("sh", "cat", "cksum", "dirname", "id", "tr", "flock", "rm", "awk"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def test_missing_python_is_an_error_that_names_the_versions(tools: Path) -> None:
    result = dev("demo", path=str(tools))
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "dev: no Python 3.11 to 3.13 found; install python3, or set PYTHON: PYTHON=/path/to/python3 ./dev ..."
    )


def test_old_or_broken_python_is_skipped(tools: Path) -> None:
    for name, text in (("python3", "#!/bin/sh\nexit 1\n"), ("python3.12", "#!/bin/sh\nexit 127\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    assert "no Python 3.11 to 3.13 found" in dev("demo", path=str(tools)).stderr


def test_missing_packages_are_listed_in_one_line_without_root(tools: Path) -> None:
    """A user without root and without sudo, on a machine with only a Python."""
    (tools / "python3").symlink_to("/usr/bin/python3")
    (tools / "id").unlink()
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    result = dev("test", path=str(tools))
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "apt-get install" in line
    for package in ("chromium", "coturn", "faketime", "gcc", "golang-go", "libsystemd-dev"):
        assert package in line


def test_unusable_python_in_the_environment_is_an_error() -> None:
    result = dev("demo", PYTHON="/nonexistent/python")
    assert result.returncode == 1
    assert result.stderr.strip() == "dev: PYTHON=/nonexistent/python is not a working Python 3.11 to 3.13"


# A stub of Python: it creates an environment with itself, logs installations, and prints other commands.
MACHINES = ("systemd-nspawn", "ip", "nft", "ssh", "nginx", "shellcheck")
STUB = """#!/bin/sh
case "$*" in
  "-c "*sys.executable*) echo "$0" ;;
  "-c import libcamera") [ -e has-libcamera ] ;;
  "-c "*) ;;
  -VV) echo "Python 3.11.99 (stub)" ;;
  -V) echo "Python 3.11.99" ;;
  "-m venv --without-pip --system-site-packages "*)
    mkdir -p "$5/bin" && cp "$0" "$5/bin/python" && echo venv+site >>steps ;;
  "-m venv --without-pip "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>steps ;;
  */pip\\ install*) ls -d .venv/edge-stamp-* 2>/dev/null >>stamps; echo pip >>steps; [ ! -e pip-fails ] ;;
  "- "*) cat >/dev/null ;;
  *) echo "ran $*"; [ ! -e /proc/$$/fd/9 ] || echo "holds the lock" ;;
esac
"""


class Checkout:
    """The script with its own locks and a stub for Python. `steps` lists what the script did."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copy(DEV, directory)
        (directory / "locks").mkdir()
        (directory / ".ci/pip").mkdir(parents=True)
        for name in ("locks/run.txt", "locks/dev.txt", "pyproject.toml", ".ci/pip/pip-1.whl"):
            (directory / name).write_text(name)
        tools = directory / "tools"
        tools.mkdir()
        # All system commands are present, whatever this machine has installed.
        present = (
            "chromium",
            "mosquitto",
            "mosquitto_pub",
            "turnserver",
            "faketime",
            "debootstrap",
            "dpkg",
            "go",
            *MACHINES,
            "gcc",
            "pkg-config",
        )
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

    def steps(self) -> list[str]:
        """The steps since the last call."""
        log = self.directory / "steps"
        steps = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return steps


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_environment_is_created_once(checkout: Checkout) -> None:
    assert checkout.dev("demo", "--x").stdout == "ran -m edge.demo --x\n"
    assert checkout.steps() == ["venv", "pip"]
    assert checkout.dev("demo").returncode == 0
    assert checkout.steps() == []


def test_demo_and_tests_share_one_environment(checkout: Checkout) -> None:
    checkout.dev("demo")
    assert checkout.steps() == ["venv", "pip"]
    checkout.dev("test", "tests/unit")
    assert checkout.steps() == ["pip"]
    checkout.dev("demo")
    assert checkout.steps() == []


@pytest.mark.parametrize("changed", ["locks/run.txt", "pyproject.toml"])
def test_environment_is_created_again_when_its_lock_changed(checkout: Checkout, changed: str) -> None:
    checkout.dev("demo")
    checkout.steps()
    (checkout.directory / changed).write_text("changed")
    checkout.dev("demo")
    assert checkout.steps() == ["venv", "pip"]


def test_environment_is_created_again_when_the_python_changed(checkout: Checkout) -> None:
    checkout.dev("test", "tests/unit")
    checkout.steps()
    python = checkout.directory / "tools/python3"
    python.write_text(STUB.replace("3.11.99 (stub)", "3.12.0 (stub)"))
    checkout.dev("test", "tests/unit")
    assert checkout.steps() == ["venv", "pip"]


def test_incomplete_environment_is_created_again(checkout: Checkout) -> None:
    checkout.dev("demo")
    (checkout.directory / "pip-fails").touch()
    result = checkout.dev("test", "tests/unit")
    assert result.returncode == 1
    assert "the installation of the Python packages failed" in result.stderr
    assert not (checkout.directory / "stamps").read_text()  # no stamp while pip runs
    (checkout.directory / "pip-fails").unlink()
    checkout.steps()
    assert checkout.dev("test", "tests/unit").returncode == 0
    assert checkout.steps() == ["venv", "pip"]


def test_system_numpy_is_used_with_the_systems_camera_bindings(checkout: Checkout) -> None:
    """On a Raspberry Pi, apt's simplejpeg is built against apt's numpy."""
    fastapi, numpy, paho = (
        f"{name} \\\n    --hash=sha256:aa\n"
        for name in ("fastapi==1", "numpy==2 ; python_version >= '3.12'", "paho==3")
    )
    (checkout.directory / "locks/run.txt").write_text(fastapi + numpy + paho)
    checkout.dev("demo")
    assert checkout.steps() == ["venv", "pip"]
    (checkout.directory / "has-libcamera").touch()
    checkout.dev("demo")
    assert checkout.steps() == ["venv+site", "pip"]
    installed = (checkout.directory / ".venv/edge-lock.txt").read_text()
    assert installed == fastapi + paho
    checkout.dev("demo")
    assert checkout.steps() == []


def test_command_does_not_inherit_the_lock(checkout: Checkout) -> None:
    assert "holds the lock" not in checkout.dev("demo").stdout


@pytest.mark.timeout(20)
def test_demo_that_waits_for_the_tests_environment_uses_it(checkout: Checkout, tmp_path: Path) -> None:
    """A demo that starts while `test` creates .venv must not create it again while the tests use it."""
    with (tmp_path / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with checkout.start("demo") as waiter:
            try:
                assert waiter.stderr
                assert waiter.stderr.readline() == "dev: waiting for another ./dev that is creating .venv\n"
                # Create the environment of `test` in a second checkout, and copy it.
                (tmp_path / "twin").mkdir()
                Checkout(tmp_path / "twin").dev("test", "tests/unit")
                shutil.copytree(tmp_path / "twin/.venv", tmp_path / ".venv")
                stamp = tmp_path / ".venv/edge-stamp-dev"
                stamp.write_text(stamp.read_text().replace(str(tmp_path / "twin"), str(tmp_path)))
                fcntl.flock(lock, fcntl.LOCK_UN)
                assert waiter.wait(10) == 0
            finally:
                if waiter.poll() is None:
                    os.killpg(waiter.pid, signal.SIGKILL)  # the group includes its flock process
    assert checkout.steps() == []


def test_quick_applies_with_further_arguments(checkout: Checkout) -> None:
    assert checkout.dev("test", "--quick", "tests/unit", "-x").stdout == "ran -m pytest -m not slow tests/unit -x\n"
    assert checkout.dev("test", "tests/unit").stdout == "ran -m pytest tests/unit\n"


def test_fuzz_passes_its_options_on(checkout: Checkout) -> None:
    assert checkout.dev("fuzz", "--inputs", "5").stdout == "ran -m tests.fuzz --inputs 5\n"


def test_hw_test_passes_its_options_to_pytest(checkout: Checkout) -> None:
    result = checkout.dev("hw-test", "--minute", "5")
    assert result.stdout == "ran -m pytest -v -o pythonpath=. hw-tests hw-tests --minute 5\n", result.stderr


# A stub of ssh: a host on this machine with its own home. The hardware tests write their report there and fail.
SSH = """#!/bin/sh
[ "$1" != -t ] || shift
echo "$1" >>hosts
cd ../home && sh -c "$2" || exit
case $2 in *"./dev hw-test"*) echo measured >edge-streamer-hw-test/hw-tests/hw-report.json && exit 3 ;; esac
"""


def test_hw_test_over_ssh_copies_the_checkout_and_fetches_the_report(tmp_path: Path) -> None:
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
    result = checkout.dev("hw-test", "--ssh", "pi@camera", "--json", "report.json", "-k", "it's and that")
    assert result.stdout == "ran -m pytest -v -o pythonpath=. hw-tests hw-tests -k it's and that\n", result.stderr
    assert result.returncode == 3
    assert (checkout.directory / "report.json").read_text() == "measured\n"
    assert set((checkout.directory / "hosts").read_text().split()) == {"pi@camera"}
    assert (there / ".ci/pip/pip-1.whl").exists()
    assert not (there / "old.py").exists()
    assert not (there / ".git").exists()
    assert (there / ".venv-3.13/old").exists()


def test_lint_needs_no_test_programs(tools: Path) -> None:
    (tools / "python3").symlink_to("/usr/bin/python3")
    (tools / "id").unlink()
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    result = dev("lint", path=str(tools))
    assert "gcc" in result.stderr
    assert "chromium" not in result.stderr


def test_locks_contain_hashes_and_no_urls() -> None:
    for path in sorted((ROOT / "locks").glob("*.txt")):
        text = path.read_text()
        assert text.count("--hash=sha256:") > 100
        assert "://" not in text
