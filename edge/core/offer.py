"""The SDP door: what of a browser's offer is taken, and an answer that tells the truth about the stream.

An offer is read into values that were each checked, and a new offer with one video section, one H.264 payload type and
no candidates is written from them. The WebRTC engine only ever parses that text, whatever came in.
Source: RFC 8866 (SDP), RFC 8829 (JSEP), RFC 8843 (BUNDLE), RFC 6184 (H.264).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.contract.messages import CANDIDATES_LIMIT
from edge.core.candidate import Candidate, read_candidate
from edge.core.h264_profile import ProfileLevel, read_profile_level
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINES_LIMIT = 2000
_PAYLOAD_TYPE_MAX = 127
_SECTIONS_LIMIT = 16
_MID = re.compile(r"^[!#$%&'*+.0-9A-Z^_`a-z{|}~-]{1,32}$")
_UFRAG = re.compile(r"^[A-Za-z0-9+/]{4,256}$")
_PASSWORD = re.compile(r"^[A-Za-z0-9+/]{22,256}$")
_FINGERPRINT = re.compile(r"^sha-(256|384|512) [0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})+$", re.IGNORECASE)
_EXTMAP = re.compile(r"^([1-9]|1[0-4])(?:/[a-z]+)? ([\x21-\x7e]{1,128})$")
_RTPMAP = re.compile(r"^(\d{1,3}) ([A-Za-z0-9_.-]+)/(\d+)", re.ASCII)
_FEEDBACK = re.compile(r"^(\d{1,3}|\*) ((?:nack|ccm|goog-remb|transport-cc)(?: [a-z]+)?)$")
_RECEIVES = {"recvonly", "sendrecv"}
_DIRECTIONS = _RECEIVES | {"sendonly", "inactive"}
# What an offer means that gives no profile-level-id: WebRTC's reading, not RFC 6184's level 1.
_DEFAULT_PROFILE = "42e01f"
# The name under which the engine knows H.264; the answer says the true one.
_ENGINE_FMTP = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"


@dataclass(frozen=True, slots=True)
class _Section:
    """One m= section: its media line in parts and its attributes in order."""

    kind: str
    port: str
    proto: str
    formats: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]

    def value(self, name: str) -> str | None:
        return next((value for key, value in self.attributes if key == name), None)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    @property
    def mid(self) -> str | None:
        mid = self.value("mid")
        return mid if mid is not None and _MID.fullmatch(mid) else None

    @property
    def direction(self) -> str:
        return next((key for key, _ in self.attributes if key in _DIRECTIONS), "sendrecv")

    def rejected(self) -> list[str]:
        """This section in an answer that does not take it (RFC 3264, 6)."""
        lines = [f"m={self.kind} 0 {self.proto} {' '.join(self.formats)}", "c=IN IP4 0.0.0.0", "a=inactive"]
        return lines if self.mid is None else [*lines, f"a=mid:{self.mid}"]


@dataclass(frozen=True, slots=True)
class H264Choice:
    """The payload type that the stream goes out under."""

    payload_type: int
    rtx_payload_type: int | None
    asymmetry: bool
    profile_level_id: str
    """As the answer says it: the offered profile, the stream's level."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that can be answered, if the stream's codec is in it. Made by `read_offer`."""

    sections: tuple[_Section, ...]
    video_index: int
    mid: str
    bundled: bool
    transport: tuple[tuple[str, str], ...]
    candidates: tuple[Candidate, ...]

    @property
    def _video(self) -> _Section:
        return self.sections[self.video_index]

    def choose(self, stream: ProfileLevel) -> H264Choice:
        """The payload type for this stream, whatever the offer's order of codecs.

        Raises: Rejected: `no_common_codec`, in a sentence that a person at a browser understands.
        """
        parameters = {pt: _parameters(rest) for pt, rest in _by_payload_type(self._video.values("fmtp"))}
        names = {}
        for line in self._video.values("rtpmap"):
            if match := _RTPMAP.match(line):
                names[match[1]] = (match[2].lower(), match[3])
        found: list[tuple[int, int, H264Choice]] = []
        has_h264 = False
        for order, pt in enumerate(self._video.formats):
            if names.get(pt) != ("h264", "90000") or int(pt) > _PAYLOAD_TYPE_MAX:
                continue
            has_h264 = True
            fmtp = parameters.get(pt, {})
            offered = read_profile_level(fmtp.get("profile-level-id", _DEFAULT_PROFILE))
            if offered is None or fmtp.get("packetization-mode") != "1":
                continue
            preference = offered.preference(stream)
            asymmetry = fmtp.get("level-asymmetry-allowed") == "1"
            if preference is None or not (asymmetry or offered.carries(stream)):
                continue
            rtx = next(
                (
                    p
                    for p in self._video.formats
                    if names.get(p, ("",))[0] == "rtx"
                    and int(p) <= _PAYLOAD_TYPE_MAX
                    and parameters.get(p, {}).get("apt") == pt
                ),
                None,
            )
            choice = H264Choice(int(pt), int(rtx) if rtx else None, asymmetry, offered.at_level_of(stream))
            found.append((preference, order, choice))
        if not found:
            raise Rejected(Code.NO_COMMON_CODEC, _no_codec_message(stream, has_h264=has_h264))
        return min(found)[2]

    def for_engine(self, choice: H264Choice) -> str:
        """The offer that the engine is given: only what was checked, only the chosen codec."""
        payload_types = [str(pt) for pt in (choice.payload_type, choice.rtx_payload_type) if pt is not None]
        lines = [
            *_head(),
            f"a=group:BUNDLE {self.mid}",
            f"m=video 9 UDP/TLS/RTP/SAVPF {' '.join(payload_types)}",
            "c=IN IP4 0.0.0.0",
            "a=rtcp:9 IN IP4 0.0.0.0",
            *(f"a={key}:{value}" for key, value in self.transport),
            f"a=mid:{self.mid}",
            "a=recvonly",
            "a=rtcp-mux",
        ]
        extensions = [match for line in self._video.values("extmap") if (match := _EXTMAP.fullmatch(line))]
        lines += [f"a=extmap:{match[1]} {match[2]}" for match in extensions]
        lines += [f"a=rtpmap:{choice.payload_type} H264/90000", f"a=fmtp:{choice.payload_type} {_ENGINE_FMTP}"]
        for line in self._video.values("rtcp-fb"):
            match = _FEEDBACK.fullmatch(line)
            if match and match[1] in ("*", str(choice.payload_type)):
                lines.append(f"a=rtcp-fb:{choice.payload_type} {match[2]}")
        if choice.rtx_payload_type is not None:
            lines.append(f"a=rtpmap:{choice.rtx_payload_type} rtx/90000")
            lines.append(f"a=fmtp:{choice.rtx_payload_type} apt={choice.payload_type}")
        return _text(lines)

    def finish_answer(self, engine_answer: str, choice: H264Choice, *, complete: bool) -> str:
        """The answer to the offer that came in, from the engine's to the narrowed one.

        The sections that were left out come back as rejected ones, and the profile is the stream's own.
        `complete`: no candidate follows, so the end mark stays in.
        """
        head, video = _split(engine_answer)
        head = [line for line in head if not line.startswith(("a=group:", "a=ice-options:"))]
        if self.bundled:
            head.append(f"a=group:BUNDLE {self.mid}")
        fmtp = [f"profile-level-id={choice.profile_level_id}", "packetization-mode=1"]
        if choice.asymmetry:
            fmtp.append("level-asymmetry-allowed=1")
        prefix = f"a=fmtp:{choice.payload_type} "
        video = [prefix + ";".join(fmtp) if line.startswith(prefix) else line for line in video]
        if not complete:
            head.append("a=ice-options:trickle")
            video = [line for line in video if line != "a=end-of-candidates"]
        lines = head
        for index, section in enumerate(self.sections):
            lines = lines + (video if index == self.video_index else section.rejected())
        return _text(lines)


def read_offer(sdp: str) -> Offer:
    """Read an offer.

    Candidates with a `.local` name and TCP ones are left out, and so is the end mark: a browser behind mDNS is learned
    as peer-reflexive, and a check list that was told its end would fail before that.
    Raises: Rejected: `bad_offer`, the message says what is wrong with it.
    """
    session, sections = _parse(sdp)
    index = next((i for i, section in enumerate(sections) if _wants_video(section)), None)
    if index is None:
        raise _bad("it asks for no video (no m=video section that receives)")
    video = sections[index]
    if video.mid is None:
        raise _bad("its video section has no a=mid")
    if "TLS" not in video.proto.split("/"):
        raise _bad("its video section does not use DTLS")
    bundle = next((value.split()[1:] for key, value in session if key == "group" and value.startswith("BUNDLE ")), [])
    bundled = video.mid in bundle
    # In a bundle, the first section's transport and candidates hold for all (RFC 8843, 7).
    mates = [section for section in sections if section.mid in bundle] if bundled else []
    sources = [video.attributes, *(mate.attributes for mate in mates), session]
    texts = dict.fromkeys(text for section in [video, *mates] for text in section.values("candidate"))
    return Offer(
        sections=sections,
        video_index=index,
        mid=video.mid,
        bundled=bundled,
        transport=_transport(sources),
        candidates=_candidates(texts),
    )


def _wants_video(section: _Section) -> bool:
    usable = section.port != "0" or section.value("bundle-only") is not None
    return section.kind == "video" and usable and section.direction in _RECEIVES


def _transport(sources: list[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    def first(name: str, pattern: re.Pattern[str]) -> str:
        for attributes in sources:
            for key, value in attributes:
                if key == name and pattern.fullmatch(value):
                    return value
        raise _bad(f"it has no usable a={name}")

    return (
        ("ice-ufrag", first("ice-ufrag", _UFRAG)),
        ("ice-pwd", first("ice-pwd", _PASSWORD)),
        ("fingerprint", first("fingerprint", _FINGERPRINT)),
        ("setup", first("setup", re.compile(r"^(actpass|active|passive)$"))),
    )


def _candidates(texts: Iterable[str]) -> tuple[Candidate, ...]:
    """The first that a session takes; the others are not even read, which would hold up the pictures."""
    found: dict[Candidate, None] = {}
    for text in texts:
        if len(found) == CANDIDATES_LIMIT:
            break
        candidate = _candidate(text)
        if candidate is not None:
            found[candidate] = None
    return tuple(found)


def _candidate(text: str) -> Candidate | None:
    try:
        return read_candidate(text)
    except Rejected:
        return None


def _parse(sdp: str) -> tuple[tuple[tuple[str, str], ...], tuple[_Section, ...]]:
    lines = sdp.splitlines()
    if not lines or lines[0] != "v=0":
        raise _bad("it is not SDP (no v=0 at its start)")
    if len(lines) > _LINES_LIMIT:
        raise _bad("it has too many lines")
    session: list[tuple[str, str]] = []
    sections: list[tuple[list[str], list[tuple[str, str]]]] = []
    for line in lines[1:]:
        if line.startswith("m="):
            media = line[2:].split()
            if len(media) < 4 or not media[1].isdigit():
                raise _bad("it has a malformed m= line")
            sections.append((media, []))
        elif line.startswith("a="):
            key, _, value = line[2:].partition(":")
            (sections[-1][1] if sections else session).append((key, value.strip()))
    if len(sections) > _SECTIONS_LIMIT:
        raise _bad("it has too many m= sections")
    return tuple(session), tuple(
        _Section(media[0], media[1], media[2], tuple(media[3:]), tuple(attributes)) for media, attributes in sections
    )


def _by_payload_type(lines: list[str]) -> list[tuple[str, str]]:
    return [(pt, rest) for pt, _, rest in (line.partition(" ") for line in lines)]


def _parameters(text: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in text.split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _no_codec_message(stream: ProfileLevel, *, has_h264: bool) -> str:
    if not has_h264:
        return "this browser offers no H.264 video, and the camera sends nothing else"
    return (
        f"this browser offers no H.264 that this camera's stream fits ({stream.profile}, level {stream.level_idc / 10})"
    )


def _head() -> list[str]:
    return ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0"]


def _split(sdp: str) -> tuple[list[str], list[str]]:
    lines = sdp.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("m="))
    return lines[:start], lines[start:]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)


def _bad(what: str) -> Rejected:
    return Rejected(Code.BAD_OFFER, f"the offer cannot be answered: {what}")
