"""What has to hold of an offer that is taken, whatever came in."""

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

# All that the engine may be given: nothing else of an offer gets this far.
_ENGINE_LINES = re.compile(
    r"v=0|o=- 1 1 IN IP4 0\.0\.0\.0|s=-|t=0 0|c=IN IP4 0\.0\.0\.0|a=rtcp:9 IN IP4 0\.0\.0\.0|a=recvonly|a=rtcp-mux"
    r"|m=video 9 UDP/TLS/RTP/SAVPF [0-9]{1,3}( [0-9]{1,3})?|a=setup:(actpass|active|passive)"
    r"|a=(group:BUNDLE|mid|ice-ufrag|ice-pwd|fingerprint|extmap|rtpmap|fmtp|rtcp-fb)[: ][\x20-\x7e]+"
)


def check_offer(sdp: str) -> None:
    """Read an offer and answer it, but for the engine. Raises: AssertionError."""
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
    """The answer to an offer, by an engine that only parses. Raises: AssertionError."""
    lines = offer.for_engine(choice).split("\r\n")
    assert lines.pop() == ""
    strange = [line for line in lines if not _ENGINE_LINES.fullmatch(line)]
    assert not strange, strange
    (media,) = SessionDescription.parse("\r\n".join([*lines, ""])).media
    assert media.rtp.codecs[0].payloadType == choice.payload_type
    assert len(offer.candidates) <= CANDIDATES_LIMIT
    engine_answer = [*lines[:4], f"a=group:BUNDLE {offer.mid}", *lines[5:], "a=end-of-candidates", ""]
    for complete in (False, True):
        answer = offer.finish_answer("\r\n".join(engine_answer), choice, complete=complete)
        assert len(answer.encode()) < PAYLOAD_LIMIT_BYTES
        answered = answer.split("\r\n")
        assert answered == [*answer.splitlines(), ""], "a line within a line"
        assert sum(line.startswith("m=") for line in answered) == len(offer.sections)
        assert f"profile-level-id={choice.profile_level_id}" in answer
    return answer
