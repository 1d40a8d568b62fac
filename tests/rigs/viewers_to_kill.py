"""A process full of aiortc viewers, for a test that kills it: offers out and answers in, as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription


async def main(count: int) -> None:
    loop, viewers = asyncio.get_running_loop(), []
    for _ in range(count):
        viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        viewers.append(viewer)
        viewer.addTransceiver("video", direction="recvonly")
        await viewer.setLocalDescription(await viewer.createOffer())
        sys.stdout.write(json.dumps(viewer.localDescription.sdp) + "\n")
        sys.stdout.flush()
        answer = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
        await viewer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
