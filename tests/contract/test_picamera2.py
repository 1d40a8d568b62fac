"""The camera room with the real picamera2, in the camera root. Each test file there is one test here."""

from __future__ import annotations

import pytest

from tests.rigs.camera_root import ENVIRONMENT, CameraRoot


@pytest.fixture(scope="module")
def root() -> CameraRoot:
    made = CameraRoot()
    made.build()
    return made


def passes(root: CameraRoot, *arguments: str, timeout_s: float) -> None:
    done = root.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout[-20000:]


@pytest.mark.timeout(1800)  # the first run on a machine builds the root
def test_packages_from_apt_and_from_the_lock_import_together(root: CameraRoot) -> None:
    """As on a Pi: libcamera, numpy and picamera2 are the system's, av and aiortc are ours."""
    code = """
import libcamera, numpy, simplejpeg, picamera2, PIL, systemd, av, aiortc, fastapi, edge.daemon
from picamera2.encoders import H264Encoder
print(simplejpeg.encode_jpeg(numpy.zeros((16, 16, 3), numpy.uint8))[:2] == b"\\xff\\xd8")
for module in (libcamera, numpy, simplejpeg, picamera2, av, aiortc):
    print(module.__name__, module.__file__)
"""
    lines = root.python("-c", code).stdout.splitlines()
    assert lines[0] == "True", lines
    where = dict(line.split(" ", 1) for line in lines[1:])
    for system in ("libcamera", "numpy", "simplejpeg", "picamera2"):
        assert "/dist-packages/" in where[system], where
    for ours in ("av", "aiortc"):
        assert where[ours].startswith("/opt/edge/"), where


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_source_tests_pass_with_picamera2(root: CameraRoot) -> None:
    passes(root, "tests/contract/test_source.py", "-k", "picamera2", timeout_s=580)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_encoder_tests_pass_with_picamera2(root: CameraRoot) -> None:
    passes(root, "tests/picamera2/test_encoders.py", timeout_s=580)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["recovery", "viewers"])
@pytest.mark.timeout(900)
def test_camera_tests_pass_on_the_virtual_camera(root: CameraRoot, what: str) -> None:
    passes(root, f"tests/picamera2/test_{what}.py", timeout_s=880)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_hardware_tests_run_on_the_virtual_camera(root: CameraRoot) -> None:
    """So that they are known to work before somebody runs them on a board."""
    command = ["/edge/dev", "hw-test", "--minute", "5", "--json", "/tmp/report.json"]
    output = root.run(command, environment={"EDGE_VENV": ENVIRONMENT}, timeout_s=380)
    assert "encoder: libx264" in output
    assert "kill_recovery_s" in output
