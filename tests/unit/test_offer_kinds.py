"""How unusual offers are answered: those of recorded clients, and the kinds behind them."""

from __future__ import annotations

import re
from itertools import product

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.codes import Code
from edge.contract.messages import CandidateBody
from edge.core.h264_profile import ProfileLevel, read_profile_level
from edge.core.offer import read_offer
from edge.errors import Rejected
from tests.unit.test_offer import CHROME, HD720, HD1080, answered, offer_of, stream

# What the recorded clients ask for: the payload types and the profile of the answer, and the usable candidates.
RECORDED = {
    "alexa-echo-show": ("99", "42c0", ["203.0.113.210"]),
    "decoder-high-only": ("127 125", "4d00", []),
    "firefox-audio-first": ("126", "42c0", []),
    "firefox39-rtp-savpf": ("126", "42c0", ["192.0.2.214", "203.0.113.190", "198.51.100.14"]),
    "gstreamer-simple-whep-client-no-fmtp": ("96", "42c0", ["2001:db8:be4d:9800:7e83:34ff:febe:fcdc", "192.0.2.2"]),
    "gstreamer-simple-whep-client-pm1": ("96", "42c0", ["2001:db8:be4d:9800:7e83:34ff:febe:fcdc", "192.0.2.2"]),
    "jsep-tcp-dtls-profile": ("106 107", "42c0", []),
    "sfu-ice-lite-sha512": ("101 102", "42c0", ["192.0.2.50"]),
    "uuid-mid": ("106 107", "42c0", []),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("of", [HD720, HD1080])
async def test_recorded_offers_are_answered(name: str, of: ProfileLevel) -> None:
    formats, profile, hosts = RECORDED[name]
    offer = read_offer(offer_of(name))
    assert [candidate.host for candidate in offer.candidates] == hosts
    assert offer.choose(of).fits
    answer = await answered(offer_of(name), of)
    (media,) = [line for line in answer.splitlines() if line.startswith("m=video")]
    assert re.fullmatch(rf"m=video [1-9]\d* \S+ {formats}", media)
    assert f"profile-level-id={profile}{of.text[4:]};packetization-mode=1" in answer
    assert f"a=group:BUNDLE {offer.mid}\r\n" in answer


@pytest.mark.parametrize(
    "name", ["alexa-echo-show", "gstreamer-simple-whep-client-no-fmtp", "gstreamer-simple-whep-client-pm1"]
)
@pytest.mark.parametrize("of", [HD720, HD1080])
async def test_a_format_that_names_no_mode_or_level_is_answered_with_mode_1_at_every_level(
    name: str, of: ProfileLevel
) -> None:
    answer = SessionDescription.parse(await answered(offer_of(name), of))
    video = next(m for m in answer.media if m.kind == "video")
    (codec,) = video.rtp.codecs
    assert codec.parameters == {"profile-level-id": of.text, "packetization-mode": "1"}
    assert video.direction == "sendonly"


@pytest.mark.parametrize(
    ("name", "proto", "payload_type"),
    [
        ("firefox39-rtp-savpf", "RTP/SAVPF", 126),
        ("jsep-tcp-dtls-profile", "TCP/DTLS/RTP/SAVPF", 106),
        ("sfu-ice-lite-sha512", "UDP/TLS/RTP/SAVPF", 101),
    ],
)
async def test_the_answer_repeats_the_offered_proto(name: str, proto: str, payload_type: int) -> None:
    (media,) = [line for line in (await answered(offer_of(name), HD720)).splitlines() if line.startswith("m=")]
    assert re.fullmatch(rf"m=video [1-9]\d* {proto} {payload_type}( \d+)?", media)


# RFC 8829, 5.1.2
@pytest.mark.parametrize(
    "proto",
    [
        *("RTP/AVP", "RTP/AVPF", "RTP/SAVP", "RTP/SAVPF"),
        *("TCP/DTLS/RTP/SAVP", "TCP/DTLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "UDP/TLS/RTP/SAVPF"),
    ],
)
async def test_every_proto_that_means_dtls_srtp_is_answered(proto: str) -> None:
    assert f" {proto} 108 109\r\n" in await answered(CHROME.replace("UDP/TLS/RTP/SAVPF", proto), HD720)


@pytest.mark.parametrize("name", ["chrome-audio-video-data", "firefox-audio-first", "alexa-echo-show"])
async def test_rejected_sections_keep_the_names_of_their_formats(name: str) -> None:
    offered, got = (
        SessionDescription.parse(offer_of(name)),
        SessionDescription.parse(await answered(offer_of(name), HD720)),
    )
    rejected = [(theirs, ours) for theirs, ours in zip(offered.media, got.media, strict=True) if ours.port == 0]
    assert rejected
    for theirs, ours in rejected:
        assert ours.fmt == theirs.fmt
        assert [(codec.payloadType, str(codec)) for codec in ours.rtp.codecs] == [
            (codec.payloadType, str(codec)) for codec in theirs.rtp.codecs
        ]
        assert ours.direction == "inactive"


async def test_only_an_ice_lite_client_makes_the_engine_control() -> None:
    lite, full = offer_of("sfu-ice-lite-sha512"), offer_of("sfu-ice-lite-sha512").replace("a=ice-lite\r\n", "")
    for sdp, role in ((lite, "controlling"), (full, "controlled")):
        offer = read_offer(sdp)
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sender = pc.addTransceiver("video", direction="sendonly").sender
        await pc.setRemoteDescription(RTCSessionDescription(offer.for_engine(offer.choose(HD720)), "offer"))
        assert sender.transport.transport.role == role
        await pc.close()
    assert "ice-lite" not in await answered(lite, HD720)


MID = "v-00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("mid", [MID, "x" * 255])
async def test_a_long_mid_is_repeated_in_the_answer(mid: str) -> None:
    answer = (await answered(offer_of("uuid-mid").replace(MID, mid), HD720)).splitlines()
    assert {f"a=mid:{mid}", f"a=group:BUNDLE {mid}"} <= set(answer)
    assert CandidateBody(session="s-1", candidate=None, sdp_mid=mid), "candidates name it, too"


@pytest.mark.parametrize("line", ["", "a=mid:\r\n", "a=mid:two words\r\n", f"a=mid:{'x' * 256}\r\n"])
def test_the_error_says_which_mids_are_accepted(line: str) -> None:
    with pytest.raises(Rejected, match="no a=mid that is a token of at most 255 characters") as caught:
        read_offer(CHROME.replace("a=mid:0\r\n", line))
    assert caught.value.code is Code.BAD_OFFER


def moved_to_the_session(name: str, sdp: str = CHROME) -> str:
    """Move all lines of an attribute above the first section."""
    lines = re.findall(rf"a={name}.*\r\n", sdp)
    assert lines
    return re.sub(rf"a={name}.*\r\n", "", sdp).replace("m=video", "".join(lines) + "m=video", 1)


@pytest.mark.parametrize("name", ["ice-ufrag", "ice-pwd", "fingerprint", "setup", "extmap:", "recvonly"])
def test_attributes_of_the_session_count_for_the_video_section(name: str) -> None:
    plain, moved = read_offer(CHROME), read_offer(moved_to_the_session(name))
    choice = plain.choose(HD720)
    assert moved.for_engine(choice) == plain.for_engine(choice)
    assert "a=extmap:" in moved.for_engine(choice)


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
def test_a_direction_of_the_session_counts_unless_the_section_has_its_own(direction: str) -> None:
    session = CHROME.replace("m=video", f"a={direction}\r\nm=video")
    assert read_offer(session).mid == "0"
    with pytest.raises(Rejected, match="no m=video section that receives"):
        read_offer(session.replace("a=recvonly\r\n", ""))


def test_a_format_that_names_mode_1_is_preferred() -> None:
    sdp = offer_of("chrome").replace("108 109 114 115", "114 115 108 109").replace("packetization-mode=0;", "")
    assert read_offer(sdp).choose(HD720).payload_type == 108


@pytest.mark.parametrize("name", ["firefox-without-h264", "single-nal-only"])
def test_an_offer_without_the_streams_profile_has_no_common_codec(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_offer(offer_of(name)).choose(HD720)
    assert caught.value.code is Code.NO_COMMON_CODEC
    assert "H.264" in caught.value.message


@pytest.mark.parametrize(("of", "fits", "profile"), [(HD720, True, "42c01f"), (HD1080, False, "42e01f")])
async def test_without_asymmetry_the_answer_stays_within_the_offered_level(
    of: ProfileLevel, fits: bool, profile: str
) -> None:
    choice = read_offer(offer_of("no-asymmetry")).choose(of)
    assert (choice.fits, choice.asymmetry, choice.profile_level_id) == (fits, False, profile)
    answer = await answered(offer_of("no-asymmetry"), of)
    assert f"a=fmtp:98 profile-level-id={profile};packetization-mode=1\r\n" in answer


def test_a_format_whose_level_fits_is_preferred() -> None:
    offer = read_offer(
        offer_of("chrome")
        .replace("108 109 114 115", "114 115 108 109")
        .replace(
            "a=fmtp:114 level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f",
            "a=fmtp:114 packetization-mode=1;profile-level-id=42e01f",
        )
    )
    assert offer.choose(HD720).payload_type == 114
    assert offer.choose(HD1080).payload_type == 108


@pytest.mark.parametrize("of", [HD720, HD1080])
def test_a_level_that_fits_counts_more_than_the_nearest_profile(of: ProfileLevel) -> None:
    main = "a=rtpmap:100 H264/90000\r\na=fmtp:100 packetization-mode=1;profile-level-id=4d0028\r\n"
    sdp = offer_of("no-asymmetry").replace("SAVPF 98 99", "SAVPF 98 99 100")
    sdp = sdp.replace("a=rtpmap:98", f"{main}a=rtpmap:98")
    low = sdp.replace("profile-level-id=42e01f", "profile-level-id=42e01e")
    choice = read_offer(low).choose(of)
    assert (choice.payload_type, choice.fits, choice.profile_level_id) == (100, True, f"4d00{of.text[4:]}")
    high = sdp.replace("profile-level-id=42e01f", "profile-level-id=42e028")
    assert read_offer(high).choose(of).payload_type == 98, "among those that fit, the nearest profile"


@pytest.mark.parametrize("name", ["firefox-without-h264", "single-nal-only"])
def test_an_offer_that_no_stream_fits_is_known_without_a_stream(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_offer(offer_of(name)).check_codec()
    assert caught.value.code is Code.NO_COMMON_CODEC


@pytest.mark.parametrize("name", ["baseline-only", "high-only", "main-only"])
def test_a_high_stream_is_not_sent_to_decoders_of_lower_profiles(name: str) -> None:
    with pytest.raises(Rejected):
        read_offer(offer_of(name)).choose(stream("64001f"))


def test_a_main_stream_is_sent_to_a_high_decoder() -> None:
    offer = read_offer(offer_of("high-only").replace("640c1f", "64001f"))
    assert offer.choose(stream("4d001f")).profile_level_id == "64001f"


def test_a_high_stream_is_sent_as_high() -> None:
    assert read_offer(offer_of("safari")).choose(stream("640c1f")).payload_type == 96
    assert read_offer(offer_of("edge")).choose(stream("64001f")).payload_type == 118


PROFILES = ["42e0", "42c0", "4200", "4d80", "4d00", "640c", "6400", "f400"]
LEVELS = ["0a", "0d", "15", "1e", "1f", "28", "33"]
PROFILE_LEVELS = [profile + level for profile, level in product(PROFILES, LEVELS)]
FORMATS = st.tuples(
    st.sampled_from([None, *PROFILE_LEVELS]), st.sampled_from([None, "0", "1"]), st.sampled_from([None, "0", "1"])
)


def fits(values: tuple[str | None, str | None, str | None], of: ProfileLevel) -> bool:
    """Whether a decoder of this format plays the stream, at its level."""
    named, _, asymmetry = values
    offered = read_profile_level(named or "42e01f")
    if offered is None or offered.preference(of) is None:
        return False
    return asymmetry == "1" or named is None or offered.carries(of)


@given(st.lists(FORMATS, min_size=1, max_size=8), st.sampled_from(PROFILE_LEVELS[:-7]))
def test_the_answer_names_an_offered_profile_and_no_higher_level_unless_asymmetry_allows_it(
    formats: list[tuple[str | None, str | None, str | None]], text: str
) -> None:
    of = stream(text)
    names = ("profile-level-id", "packetization-mode", "level-asymmetry-allowed")
    lines = "".join(
        f"a=rtpmap:{96 + at} H264/90000\r\na=fmtp:{96 + at} "
        + ";".join(f"{name}={value}" for name, value in zip(names, values, strict=True) if value is not None)
        + "\r\n"
        for at, values in enumerate(formats)
    )
    head = CHROME.split("m=video")[0]
    transport = re.findall(r"a=(?:ice-ufrag|ice-pwd|fingerprint|setup|mid).*\r\n", CHROME)
    pts = " ".join(str(96 + at) for at in range(len(formats)))
    sdp = f"{head}m=video 9 UDP/TLS/RTP/SAVPF {pts}\r\n{''.join(transport)}a=recvonly\r\n{lines}"
    usable = [values for values in formats if values[1] != "0"]
    try:
        choice = read_offer(sdp).choose(of)
    except Rejected as exc:
        assert exc.code is Code.NO_COMMON_CODEC
        played = [read_profile_level(values[0] or "42e01f") for values in usable]
        assert not [each for each in played if each is not None and each.preference(of) is not None]
        return
    named, mode, asymmetry = formats[choice.payload_type - 96]
    offered, got = stream(named or "42e01f"), stream(choice.profile_level_id)
    assert mode != "0"
    assert choice.fits or not [values for values in usable if fits(values, of)]
    assert got.profile is offered.profile
    assert choice.asymmetry is (asymmetry == "1")
    if choice.fits:
        assert got.level_idc == of.level_idc
        assert choice.asymmetry or named is None or offered.carries(of)
    else:
        assert choice.profile_level_id == named
        assert not offered.carries(of)
