"""Chromium accepts the answers to unusual offers, and plays what they announce."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.rigs.chromium import chromium
from tests.service.test_peer import Events, stage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

_OFFER = """async (wanted) => {
  const pc = window.pc = new RTCPeerConnection();
  pc.addTransceiver("audio", {direction: "recvonly"});
  const video = pc.addTransceiver("video", {direction: "recvonly"});
  pc.createDataChannel("control");
  const codecs = RTCRtpReceiver.getCapabilities("video").codecs;
  video.setCodecPreferences(codecs.filter(codec => wanted.some(part => codec.sdpFmtpLine?.includes(part))));
  await pc.setLocalDescription();
  return pc.localDescription.sdp;
}"""
_PLAY = """async (sdp) => {
  await pc.setRemoteDescription({type: "answer", sdp});
  for (;;) {
    for (const stats of (await pc.getStats()).values())
      if (stats.type === "inbound-rtp" && stats.framesDecoded > 10) return stats.framesDecoded;
    await new Promise(resolve => setTimeout(resolve, 100));
  }
}"""


def without_asymmetry(sdp: str) -> str:
    return sdp.replace("level-asymmetry-allowed=1;", "")


def without_level(sdp: str) -> str:
    return sdp.replace(";profile-level-id=42e01f", "")


@pytest.mark.parametrize(
    ("wanted", "change", "profile"),
    [
        ("profile-level-id=4d001f", str, "4d00"),
        ("profile-level-id=42e01f", without_asymmetry, "42c0"),
        ("profile-level-id=42e01f", without_level, "42c0"),
    ],
)
async def test_chromium_plays_the_stream_under_the_answered_profile(
    wanted: str, change: Callable[[str], str], profile: str
) -> None:
    async with chromium(hide_addresses=False) as browser, stage() as on, asyncio.timeout(60):
        page = await browser.new_page()
        offered: Any = await page.evaluate(_OFFER, [wanted])
        peer, answer = await on.answer(Events(), change(offered), [], trickle=False)
        assert f"profile-level-id={profile}" in answer
        assert await page.evaluate(_PLAY, answer) > 10
        await peer.close()
