"""aiortc without PyAV, which is loaded with its first use. Each test runs in a new process."""

from __future__ import annotations

import subprocess
import sys

import pytest

LAZY = "from edge.streaming.lazy_av import av_on_demand\nwith av_on_demand():"


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_the_daemon_imports_neither_pyav_nor_what_only_the_camera_needs() -> None:
    code = f"{LAZY} import edge.daemon\nimport sys; print(*sys.modules)"
    loaded = {module.partition(".")[0] for module in run(code)}
    assert {"aiortc", "fastapi"} <= loaded
    assert not loaded & {"av", "numpy", "picamera2", "libcamera", "amqtt", "awscrt", "PIL"}


def test_pyav_comes_with_its_first_use() -> None:
    code = f"""
{LAZY} import aiortc
import asyncio, sys
from aiortc.mediastreams import AudioFrame, VideoFrame, VideoStreamTrack

print(isinstance(0, VideoFrame), "av" in sys.modules)
frame = asyncio.run(VideoStreamTrack().recv())
print(isinstance(frame, VideoFrame), isinstance(frame, AudioFrame), "av" in sys.modules)
from aiortc.codecs.h264 import H264Encoder
print(type(H264Encoder().encode(frame, force_keyframe=True)[0][0]).__name__)
import av
print(type(frame) is av.VideoFrame, type(av).__name__)
"""
    assert run(code) == ["False", "False", "True", "False", "True", "bytes", "True", "module"]


@pytest.mark.parametrize("first", ["H264Decoder()", "None"], ids=["loaded", "not loaded"])
def test_an_error_of_pyav_is_caught_by_the_name_that_aiortc_uses(first: str) -> None:
    code = f"""
{LAZY} import aiortc.rtcrtpreceiver
from aiortc.codecs.h264 import H264Decoder

{first}
try:
    raise ValueError("of another kind")
except aiortc.rtcrtpreceiver.av.FFmpegError:
    print("caught")
except ValueError:
    print("passed")
from av.error import InvalidDataError
try:
    raise InvalidDataError(1, "a broken picture")
except aiortc.rtcrtpreceiver.av.FFmpegError:
    print("caught")
"""
    assert run(code) == ["passed", "caught"]


def test_a_broken_picture_does_not_end_the_decoder_of_aiortc() -> None:
    code = f"""
{LAZY} import aiortc.rtcrtpreceiver
import asyncio, queue, threading
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

async def main():
    pictures, decoded, broken = queue.Queue(), asyncio.Queue(), threading.Event()
    codec = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90000)
    pictures.put((codec, JitterFrame(data=b"garbage", timestamp=0)))
    pictures.put(None)
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(aiortc.rtcrtpreceiver.decoder_worker, loop, pictures, decoded, broken)
    print(broken.is_set(), await decoded.get())

asyncio.run(main())
"""
    assert run(code) == ["True", "None"]


def test_pyav_that_is_loaded_already_is_left_alone() -> None:
    code = f"import av; {LAZY} from aiortc.rtp import AudioFrame\nprint(AudioFrame is av.AudioFrame)"
    assert run(code) == ["True"]
