"""Invariants of an accepted offer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiortc.sdp import SessionDescription

from edge.contract.codes import Code
from edge.contract.messages import CANDIDATES_LIMIT, PAYLOAD_LIMIT_BYTES
from edge.core.h264_profile import read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected

if TYPE_CHECKING:
    from edge.core.offer import H264Choice, Offer

# The only lines that may reach the engine.
_ENGINE_LINES = re.compile(
    r"v=0|o=- 1 1 IN IP4 0\.0\.0\.0|s=-|t=0 0|c=IN IP4 0\.0\.0\.0|a=rtcp:9 IN IP4 0\.0\.0\.0|a=recvonly|a=rtcp-mux"
    r"|a=ice-lite|m=video 9 UDP/TLS/RTP/SAVPF [0-9]{1,3}( [0-9]{1,3})?|a=setup:(actpass|active|passive)"
    r"|a=(group:BUNDLE|mid|ice-ufrag|ice-pwd|fingerprint|extmap|rtpmap|fmtp|rtcp-fb)[: ][\x20-\x7e]+"
)
_RTPMAP = re.compile(r"a=rtpmap:[0-9]{1,3} [A-Za-z0-9_.-]+/[0-9]+(/[0-9]+)?")


def check_offer(sdp: str) -> None:
    """Read an offer and answer it without the engine. Raises: AssertionError."""
    stream = read_profile_level("42c01f")
    assert stream is not None
    try:
        offer = read_offer(sdp)
        choice = offer.choose(stream)
    except Rejected as exc:
        assert exc.code in {Code.BAD_OFFER, Code.NO_COMMON_CODEC}
        assert exc.message.isascii()
        assert len(exc.message) < 300
    else:
        check_engine_offer(offer, choice)


def check_engine_offer(offer: Offer, choice: H264Choice) -> str:
    """Answer an offer with an engine that only parses it. Raises: AssertionError."""
    lines = offer.for_engine(choice).split("\r\n")
    assert lines.pop() == ""
    unexpected = [line for line in lines if not _ENGINE_LINES.fullmatch(line)]
    assert not unexpected, unexpected
    (media,) = SessionDescription.parse("\r\n".join([*lines, ""])).media
    assert media.rtp.codecs[0].payloadType == choice.payload_type
    assert len(offer.candidates) <= CANDIDATES_LIMIT
    engine_answer = [*lines[:4], f"a=group:BUNDLE {offer.mid}", *lines[5:], "a=end-of-candidates", ""]
    for complete in (False, True):
        answer = offer.finish_answer("\r\n".join(engine_answer), choice, complete=complete)
        assert len(answer.encode()) < PAYLOAD_LIMIT_BYTES
        answer_lines = answer.split("\r\n")
        assert answer_lines == [*answer.splitlines(), ""], "a line contains a line break"
        assert sum(line.startswith("m=") for line in answer_lines) == len(offer.sections)
        assert f"profile-level-id={choice.profile_level_id}" in answer
        assert all(_RTPMAP.fullmatch(line) for line in answer_lines if line.startswith("a=rtpmap"))
    return answer
