"""Offers of browsers and other clients. Chromium's are recorded; the others follow public descriptions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.codes import Code
from edge.core.candidate import LOCAL_NAMES_LIMIT, Candidate, read_candidate
from edge.core.h264_profile import ProfileLevel, read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected

OFFERS = Path(__file__).parents[1] / "offers"


def offer_of(name: str) -> str:
    return (OFFERS / f"{name}.sdp").read_text().replace("\n", "\r\n")


def stream(text: str) -> ProfileLevel:
    level = read_profile_level(text)
    assert level is not None
    return level


CHROME = offer_of("chrome")
HD720, HD1080 = stream("42c01f"), stream("42c028")


async def answered(sdp: str, of: ProfileLevel) -> str:
    """The final answer, made with the real engine."""
    offer = read_offer(sdp)
    choice = offer.choose(of)
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        pc.addTransceiver("video", direction="sendonly")
        await pc.setRemoteDescription(RTCSessionDescription(offer.for_engine(choice), "offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        return offer.finish_answer(pc.localDescription.sdp, choice, complete=True)
    finally:
        await pc.close()


@pytest.mark.parametrize(
    ("name", "payload_type", "rtx", "profile"),
    [
        ("chrome", 108, 109, "42c0"),
        ("chrome-audio-video-data", 108, 109, "42c0"),
        ("chrome-android", 127, 125, "42c0"),
        ("edge", 108, 109, "42c0"),
        ("safari", 98, 99, "42c0"),
        ("ios", 98, 99, "42c0"),
        ("firefox", 126, 127, "42c0"),
        ("max-bundle", 98, 99, "42c0"),
        ("sendrecv", 127, 125, "42c0"),
        ("gathered", 108, 109, "42c0"),
        ("baseline-only", 98, 99, "4200"),
        ("main-that-is-constrained-baseline", 98, 99, "4d80"),
        ("high-only", 96, 97, "640c"),
        ("main-only", 96, 97, "4d00"),
        ("decoder-high-only", 127, 125, "4d00"),
    ],
)
@pytest.mark.parametrize("of", [HD720, HD1080])
async def test_the_answer_chooses_h264_and_names_the_true_profile(
    name: str, payload_type: int, rtx: int, profile: str, of: ProfileLevel
) -> None:
    sdp = offer_of(name)
    answer = await answered(sdp, of)
    offered, got = SessionDescription.parse(sdp), SessionDescription.parse(answer)
    assert [m.kind for m in got.media] == [m.kind for m in offered.media], "one section for each, in order"
    video = next(m for m in got.media if m.kind == "video")
    assert video.fmt == [payload_type, rtx]
    h264, retransmission = video.rtp.codecs
    assert h264.mimeType == "video/H264"
    assert h264.parameters["profile-level-id"] == profile + of.text[4:]
    assert h264.parameters["packetization-mode"] == "1"
    assert h264.parameters["level-asymmetry-allowed"] == "1"
    assert retransmission.parameters["apt"] == payload_type
    assert video.direction == "sendonly"
    assert video.port != 0
    assert [m.port for m in got.media if m is not video] == [0] * (len(got.media) - 1)
    assert [m.rtp.muxId for m in got.media] == [m.rtp.muxId for m in offered.media]
    assert [group.items for group in got.group] == [[video.rtp.muxId]]


def test_local_names_of_an_offer_are_kept_apart_and_limited() -> None:
    lines = "".join(f"a=candidate:{n} 1 udp 2122260223 n{n}.local 5{n:04} typ host\r\n" for n in range(9))
    offer = read_offer(offer_of("chrome") + lines)
    assert len(offer.names) == LOCAL_NAMES_LIMIT
    assert all(".local" not in candidate.host for candidate in offer.candidates)


@pytest.mark.parametrize("name", [path.stem for path in OFFERS.glob("*.sdp")])
def test_unusable_candidates_and_codecs_do_not_reach_the_engine(name: str) -> None:
    offer = read_offer(offer_of(name))
    assert all(".local" not in candidate.host for candidate in offer.candidates)
    try:
        text = offer.for_engine(offer.choose(HD720))
    except Rejected:
        return
    assert ".local" not in text
    assert "candidate" not in text
    assert "VP8" not in text
    assert "AV1" not in text


def test_all_candidates_but_tcp_are_kept() -> None:
    offer = read_offer(offer_of("gathered"))
    assert [(c.host, c.type) for c in offer.candidates] == [
        ("192.0.2.7", "host"),
        ("198.51.100.7", "srflx"),
        ("203.0.113.9", "relay"),
    ]


async def test_an_incomplete_answer_announces_trickle() -> None:
    offer = read_offer(offer_of("chrome"))
    choice = offer.choose(HD720)
    engine = "v=0\r\ns=-\r\na=group:BUNDLE 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 108\r\na=mid:0\r\na=end-of-candidates\r\n"
    trickled = offer.finish_answer(engine, choice, complete=False)
    assert "a=ice-options:trickle" in trickled
    assert "a=end-of-candidates" not in trickled
    found = "candidate:1 1 udp 1 192.0.2.1 5000 typ relay"
    complete = offer.finish_answer(engine, choice, complete=True, candidates=[found])
    assert complete.endswith(f"a=mid:0\r\na={found}\r\na=end-of-candidates\r\n")


def test_no_more_candidates_are_parsed_than_a_session_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(text: str) -> Candidate | None:
        read.append(text)
        return read_candidate(text)

    monkeypatch.setattr("edge.core.offer.read_candidate", counted)
    line = "a=candidate:1 1 udp 2122260223 192.0.2.7 {} typ host\r\n"
    many = line.format(999) * 400 + "".join(line.format(1000 + number) for number in range(400))
    # The video section is part of its own bundle.
    offer = read_offer(offer_of("edge").replace("a=ice-ufrag", many + "a=ice-ufrag", 1))
    assert offer.bundled
    assert len(offer.candidates) == 32
    assert len(read) < 40, "the repeated line is parsed once"


def test_a_ufrag_has_at_most_32_characters() -> None:
    ufrag = "u" * 32
    offer = read_offer(CHROME.replace("a=ice-ufrag:cmzB", f"a=ice-ufrag:{ufrag}"))
    assert f"a=ice-ufrag:{ufrag}\r\n" in offer.for_engine(offer.choose(HD720))


def test_a_payload_type_above_127_is_ignored() -> None:
    with pytest.raises(Rejected) as caught:
        read_offer(offer_of("no-asymmetry").replace("98", "300")).choose(HD720)
    assert caught.value.code is Code.NO_COMMON_CODEC


@pytest.mark.parametrize(
    "sdp",
    [
        "",
        "hello",
        "\0\1\2",
        "v=0",
        CHROME.replace("m=video 9", "m=video 0"),
        CHROME.replace("m=video", "m=audio"),
        CHROME.replace("a=recvonly", "a=sendonly"),
        CHROME.replace("a=recvonly", "a=inactive"),
        CHROME.replace("a=mid:0", "a=mid:"),
        CHROME.replace("a=fingerprint", "a=fingerprin"),
        CHROME.replace("a=ice-ufrag", "a=ice-frag"),
        CHROME.replace("a=ice-ufrag:cmzB", f"a=ice-ufrag:{'u' * 33}"),
        CHROME.replace("a=ice-pwd:", "a=ice-pwd:short "),
        CHROME.replace("a=setup:actpass", "a=setup:holdconn"),
        CHROME.replace("UDP/TLS/RTP/SAVPF", "udp"),
        CHROME.replace("UDP/TLS/RTP/SAVPF", "UDP/DTLS/SCTP"),
        CHROME.replace("UDP/TLS/RTP/SAVPF", "RTP/AVP").replace("a=fingerprint", "a=x-fingerprint"),
        CHROME.replace("m=video 9", "m=video x"),
        CHROME + "a=x:y\r\n" * 10_000,
        CHROME + "m=audio 9 RTP/AVP 0\r\n" * 20,
    ],
    ids=str,
)
def test_unusable_offers_are_rejected(sdp: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_offer(sdp)
    assert caught.value.code is Code.BAD_OFFER


# Line ends of str.splitlines and of other parsers.
@pytest.mark.parametrize("end", ["\r\n", "\r", "\n", "\v", "\f", "\x00", "\x1e", "\x85", "\u2028"], ids=ascii)
@pytest.mark.parametrize(
    "start",
    [
        "a=mid:",
        "a=ice-ufrag:",
        "a=ice-pwd:",
        "a=fingerprint:",
        "a=extmap:",
        "a=rtcp-fb:108",
        "a=fmtp:108",
        "a=candidate",
    ],
)
async def test_no_value_can_inject_a_line(start: str, end: str) -> None:
    lines = [f"{line}{end}a=evil" if line.startswith(start) else line for line in CHROME.split("\r\n")]
    sdp = "\r\n".join([*lines, f"m=audio 9 UDP/TLS/RTP/SAVPF 111{end}a=evil", "a=mid:9", ""])
    try:
        offer = read_offer(sdp)
        narrowed = offer.for_engine(offer.choose(HD720))
    except Rejected as exc:
        assert exc.code in (Code.BAD_OFFER, Code.NO_COMMON_CODEC)
        return
    assert "evil" not in narrowed
    assert not re.search(r"[^\x20-\x7e\r\n]", narrowed)
    assert all(re.match(r"[a-z]=", line) for line in narrowed.split("\r\n")[:-1])
    assert "a=evil" not in (await answered(sdp, HD720)).splitlines()
    assert all(re.fullmatch(r"[0-9a-f.:]+", candidate.host) for candidate in offer.candidates)


@pytest.mark.parametrize("rtx", ["128", "999", "١٠٨", "108"])  # too large, and the video's own in two scripts
async def test_an_invalid_rtx_payload_type_is_left_out(rtx: str) -> None:
    sdp = CHROME.replace(" 109 ", f" {rtx} ").replace(":109 ", f":{rtx} ")
    offer = read_offer(sdp)
    choice = offer.choose(HD720)
    assert choice.rtx_payload_type != choice.payload_type
    assert choice.rtx_payload_type is None or choice.rtx_payload_type <= 127
    await answered(sdp, HD720)


@pytest.mark.parametrize("text", ["4d 80 1f", "4d801f00", "0x4d80", "\uff14d801f"])
def test_a_profile_that_is_not_six_hex_digits_is_ignored(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_offer(offer_of("main-that-is-constrained-baseline").replace("4d801f", text)).choose(HD720)
    assert caught.value.code is Code.NO_COMMON_CODEC


def check_narrowed(sdp: str) -> None:
    """Any offer is rejected with a code, or becomes text that the engine can parse."""
    try:
        offer = read_offer(sdp)
        text = offer.for_engine(offer.choose(HD720))
    except Rejected as exc:
        assert exc.code in (Code.BAD_OFFER, Code.NO_COMMON_CODEC)
        return
    (media,) = SessionDescription.parse(text).media
    assert media.rtp.codecs[0].mimeType == "video/H264"


@given(st.text())
def test_any_text_is_read_or_rejected(text: str) -> None:
    check_narrowed(text)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    names = sorted(path.stem for path in OFFERS.glob("*.sdp"))
    lines = offer_of(draw(st.sampled_from(names))).split("\r\n")
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "twice", "swap", "edit", "cut", "renumber"])):
            case "drop":
                lines[at : at + 1] = lines[at : at + 1] if len(lines) == 1 else []
            case "twice":
                lines.insert(at, lines[at])
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "edit":
                lines[at] += draw(st.text(max_size=5))
            case "renumber":
                number = draw(st.sampled_from(["0", "98", "99", "108", "109", "127", "128", "65536", "١٠٨"]))
                lines[at] = re.sub(r"\b\d+\b", number, lines[at], count=draw(st.integers(0, 3)))
            case _:
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
    return "\r\n".join(lines)


@settings(max_examples=300)
@given(mutated())
def test_damaged_offers_are_read_or_rejected(sdp: str) -> None:
    check_narrowed(sdp)


@settings(max_examples=100)
@given(mutated())
async def test_the_engine_answers_a_narrowed_damaged_offer(sdp: str) -> None:
    try:
        answer = await answered(sdp, HD720)
    except Rejected as exc:
        assert exc.code in (Code.BAD_OFFER, Code.NO_COMMON_CODEC)
        return
    media = [line for line in answer.splitlines() if line.startswith("m=")]
    assert len(media) == len(read_offer(sdp).sections)
