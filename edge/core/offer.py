"""Read SDP offers, narrow them for the WebRTC engine, and write answers. All SDP text is edited here.

An offer is parsed into checked values. From these, a new offer is written with one video section, one H.264 payload
type and no candidates. The engine parses only that text, never what the client sent.
Source: RFC 8866 (SDP), RFC 8829 (JSEP), RFC 8843 (BUNDLE), RFC 6184 (H.264).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from edge.contract.codes import Code
from edge.contract.messages import CANDIDATES_LIMIT
from edge.core.candidate import LOCAL_NAMES_LIMIT, Candidate, LocalName, read_candidate, read_local_name
from edge.core.h264_profile import ProfileLevel, read_profile_level
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LINES_LIMIT = 2000
_END_OF_CANDIDATES = "a=end-of-candidates"
_PAYLOAD_TYPE_MAX = 127
_SECTIONS_LIMIT = 16
_MID = re.compile(r"^[!#$%&'*+.0-9A-Z^_`a-z{|}~-]{1,255}$")
# RFC 8839 allows 256 characters. Agents make at most 32, and each check carries the ufrag.
_UFRAG = re.compile(r"^[A-Za-z0-9+/]{4,32}$")
_PASSWORD = re.compile(r"^[A-Za-z0-9+/]{22,256}$")
_FINGERPRINT = re.compile(r"^sha-(256|384|512) [0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})+$", re.IGNORECASE)
_EXTMAP = re.compile(r"^([1-9]|1[0-4])(?:/[a-z]+)? ([\x21-\x7e]{1,128})$")
_RTPMAP = re.compile(r"^(\d{1,3}) ([A-Za-z0-9_.-]+)/(\d+)(?:/\d+)?", re.ASCII)
_FEEDBACK = re.compile(r"^(\d{1,3}|\*) ((?:nack|ccm|goog-remb|transport-cc)(?: [a-z]+)?)$")
# All of them mean DTLS-SRTP where the offer has a fingerprint (RFC 8829, 5.1.2).
_PROTOS = {
    *("UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "TCP/DTLS/RTP/SAVPF", "TCP/DTLS/RTP/SAVP"),
    *("RTP/SAVPF", "RTP/SAVP", "RTP/AVPF", "RTP/AVP"),
}
_RECEIVES = {"recvonly", "sendrecv"}
_DIRECTIONS = _RECEIVES | {"sendonly", "inactive"}
# The profile of a format without profile-level-id, as WebRTC reads it (RFC 6184 would say level 1). Clients that leave
# it out, such as GStreamer's webrtcbin, play every level.
_DEFAULT_PROFILE = "42e01f"
# The only parameters that the engine accepts; the answer names the true profile.
_ENGINE_FMTP = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"

_Attributes: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Section:
    """One m= section: the parts of its media line, and its attributes in order."""

    kind: str
    port: str
    proto: str
    formats: tuple[str, ...]
    attributes: _Attributes

    def value(self, name: str) -> str | None:
        return next((value for key, value in self.attributes if key == name), None)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    @property
    def mid(self) -> str | None:
        mid = self.value("mid")
        return mid if mid is not None and _MID.fullmatch(mid) else None

    def rtpmaps(self) -> dict[str, re.Match[str]]:
        """Return the name and clock rate of each payload type."""
        return {match[1]: match for value in self.values("rtpmap") if (match := _RTPMAP.match(value))}

    def rejected(self) -> list[str]:
        """The lines of an answer that rejects this section (RFC 3264, 6). pion needs the rtpmap line of each format."""
        lines = [f"m={self.kind} 0 {self.proto} {' '.join(self.formats)}", "c=IN IP4 0.0.0.0", "a=inactive"]
        if self.mid is not None:
            lines.append(f"a=mid:{self.mid}")
        rtpmaps = self.rtpmaps()
        return lines + [f"a=rtpmap:{rtpmaps[pt][0]}" for pt in dict.fromkeys(self.formats) if pt in rtpmaps]


@dataclass(frozen=True, slots=True)
class _Format:
    """One payload type of the video section."""

    payload_type: int
    name: str
    """In lower case."""
    clock_rate: str
    parameters: Mapping[str, str]
    feedback: tuple[str, ...]
    """The values of its a=rtcp-fb lines, without the payload type."""


@dataclass(frozen=True, slots=True)
class H264Choice:
    """The payload type under which the stream is sent."""

    payload_type: int
    rtx_payload_type: int | None
    asymmetry: bool
    fits: bool
    """Whether the receiver's level allows the stream's."""
    profile_level_id: str
    """For the answer: the offered profile with the stream's level, or as it was offered if the stream does not fit."""
    feedback: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A checked offer, made by `read_offer`. It can be answered if it contains the stream's codec."""

    sections: tuple[_Section, ...]
    video_index: int
    mid: str
    formats: tuple[_Format, ...]
    """The usable payload types of the video section, in the offered order."""
    extensions: Mapping[str, str]
    """The header extensions of the video section, by their numbers."""
    bundled: bool
    ice_lite: bool
    """Whether the client is an ICE-lite agent: this device has the controlling role (RFC 8445, 6.1.1)."""
    transport: _Attributes
    candidates: tuple[Candidate, ...]
    names: tuple[LocalName, ...]
    """Candidates with `.local` names."""

    def check_codec(self) -> None:
        """Raises: Rejected: `no_common_codec`, the offer has no H.264 format that any stream could be sent in."""
        self._h264()

    def choose(self, stream: ProfileLevel) -> H264Choice:
        """Choose the payload type for this stream: one whose level fits, of the nearest profile, the first offered.

        A stream above the offered level is sent all the same if nothing else was offered. Receivers play it as far as
        they can; most state a lower level than theirs.
        Raises: Rejected: `no_common_codec`, with a message for the person at the browser.
        """
        found: list[tuple[bool, int, bool, int, H264Choice]] = []
        for order, (each, offered) in enumerate(self._h264()):
            preference = offered.preference(stream)
            if preference is None:
                continue
            asymmetry = each.parameters.get("level-asymmetry-allowed") == "1"
            fits = asymmetry or "profile-level-id" not in each.parameters or offered.carries(stream)
            answered = offered.at_level_of(stream) if fits else offered.text
            rtx = self._rtx_of(each.payload_type)
            choice = H264Choice(each.payload_type, rtx, asymmetry, fits, answered, each.feedback)
            found.append((not fits, preference, "packetization-mode" not in each.parameters, order, choice))
        if not found:
            what = f"in no profile that plays this camera's stream ({stream.profile})"
            raise Rejected(Code.NO_COMMON_CODEC, f"this browser offers H.264 video, but {what}")
        return min(found)[4]

    def _h264(self) -> list[tuple[_Format, ProfileLevel]]:
        """Return the H.264 formats that can be sent, with their profiles. Raises: Rejected: there is none."""
        h264 = [each for each in self.formats if (each.name, each.clock_rate) == ("h264", "90000")]
        if not h264:
            what = "does not offer H.264 video, which is all that this camera sends"
            raise Rejected(Code.NO_COMMON_CODEC, f"this browser {what}")
        usable = []
        for each in h264:
            profile = read_profile_level(each.parameters.get("profile-level-id", _DEFAULT_PROFILE))
            # Without packetization-mode, RFC 6184 means mode 0. Clients that leave it out play mode 1 all the same.
            if profile is not None and each.parameters.get("packetization-mode", "1") == "1":
                usable.append((each, profile))
        if not usable:
            what = "in no known profile with packetization mode 1, in which this camera sends it"
            raise Rejected(Code.NO_COMMON_CODEC, f"this browser offers H.264 video, but {what}")
        return usable

    def _rtx_of(self, payload_type: int) -> int | None:
        apt = str(payload_type)
        return next(
            (each.payload_type for each in self.formats if each.name == "rtx" and each.parameters.get("apt") == apt),
            None,
        )

    def for_engine(self, choice: H264Choice) -> str:
        """Write the offer for the engine: checked values only, and only the chosen codec."""
        pt, rtx = choice.payload_type, choice.rtx_payload_type
        lines = [
            *_head(),
            f"a=group:BUNDLE {self.mid}",
            *(["a=ice-lite"] if self.ice_lite else []),
            f"m=video 9 UDP/TLS/RTP/SAVPF {pt}" + (f" {rtx}" if rtx is not None else ""),
            "c=IN IP4 0.0.0.0",
            "a=rtcp:9 IN IP4 0.0.0.0",
            *(f"a={key}:{value}" for key, value in self.transport),
            f"a=mid:{self.mid}",
            "a=recvonly",
            "a=rtcp-mux",
        ]
        lines += [f"a=extmap:{number} {uri}" for number, uri in self.extensions.items()]
        lines += [f"a=rtpmap:{pt} H264/90000", f"a=fmtp:{pt} {_ENGINE_FMTP}"]
        lines += [f"a=rtcp-fb:{pt} {value}" for value in choice.feedback]
        if rtx is not None:
            lines += [f"a=rtpmap:{rtx} rtx/90000", f"a=fmtp:{rtx} apt={pt}"]
        return _text(lines)

    def finish_answer(
        self, engine_answer: str, choice: H264Choice, *, complete: bool, candidates: Sequence[str] = ()
    ) -> str:
        """Turn the engine's answer to the narrowed offer into the answer to this one.

        Sections that the engine did not see are rejected, and the profile is the stream's own. `complete`: no candidate
        follows, so the end mark stays. `candidates`: those found since the engine's answer, as `candidate:...`.
        """
        head, video = _split(engine_answer)
        head = [line for line in head if not line.startswith(("a=group:", "a=ice-options:"))]
        if self.bundled:
            head.append(f"a=group:BUNDLE {self.mid}")
        fmtp = [f"profile-level-id={choice.profile_level_id}", "packetization-mode=1"]
        if choice.asymmetry:
            fmtp.append("level-asymmetry-allowed=1")
        prefix = f"a=fmtp:{choice.payload_type} "
        media, port, _, formats = video[0].split(" ", 3)
        video[0] = f"{media} {port} {self.sections[self.video_index].proto} {formats}"
        video = [prefix + ";".join(fmtp) if line.startswith(prefix) else line for line in video]
        end = video.index(_END_OF_CANDIDATES) if _END_OF_CANDIDATES in video else len(video)
        video[end:end] = [f"a={candidate}" for candidate in candidates]
        if not complete:
            head.append("a=ice-options:trickle")
            video = [line for line in video if line != _END_OF_CANDIDATES]
        lines = head
        for index, section in enumerate(self.sections):
            lines = lines + (video if index == self.video_index else section.rejected())
        return _text(lines)


def read_offer(sdp: str) -> Offer:
    """Parse and check an offer.

    TCP candidates and the end mark are left out. A browser behind mDNS may become known by its own checks
    (peer-reflexive); after the end mark, the check list would fail before that.
    Raises: Rejected: `bad_offer`; the message names the fault.
    """
    session, sections = _parse(sdp)
    index = next((i for i, section in enumerate(sections) if _receives_video(section, session)), None)
    if index is None:
        raise _bad("it has no m=video section that receives")
    video = sections[index]
    if video.mid is None:
        raise _bad("its video section has no a=mid that is a token of at most 255 characters")
    if video.proto not in _PROTOS:
        raise _bad("the protocol of its video section is not RTP over DTLS")
    bundle = next((value.split()[1:] for key, value in session if key == "group" and value.startswith("BUNDLE ")), [])
    bundled = video.mid in bundle
    # In a bundle, the transport and candidates of the first section are those of all (RFC 8843, 7).
    bundle_sections = [section for section in sections if section.mid in bundle] if bundled else []
    sources = [video.attributes, *(section.attributes for section in bundle_sections), session]
    texts = dict.fromkeys(text for section in [video, *bundle_sections] for text in section.values("candidate"))
    return Offer(
        sections=sections,
        video_index=index,
        mid=video.mid,
        formats=_formats(video),
        extensions=_extensions(session, video.attributes),
        bundled=bundled,
        ice_lite=any(key == "ice-lite" for key, _ in session),
        transport=_transport(sources),
        candidates=_candidates(texts),
        names=_names(texts),
    )


def _receives_video(section: _Section, session: _Attributes) -> bool:
    usable = section.port != "0" or section.value("bundle-only") is not None
    # A direction of the session is that of each section without its own (RFC 8866, 6.7).
    stated = (key for key, _ in (*section.attributes, *session) if key in _DIRECTIONS)
    return section.kind == "video" and usable and next(stated, "sendrecv") in _RECEIVES


def _extensions(session: _Attributes, video: _Attributes) -> dict[str, str]:
    """Read the header extensions, which may be listed for the whole session, too (RFC 8285, 5)."""
    values = (value for key, value in (*session, *video) if key == "extmap")
    return {match[1]: match[2] for value in values if (match := _EXTMAP.fullmatch(value))}


def _transport(sources: list[_Attributes]) -> _Attributes:
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
    """Read as many candidates as a session may have. Reading thousands would delay the pictures of all viewers."""
    found: dict[Candidate, None] = {}
    for text in texts:
        if len(found) == CANDIDATES_LIMIT:
            break
        candidate = _candidate(text)
        if candidate is not None:
            found[candidate] = None
    return tuple(found)


def _names(texts: Iterable[str]) -> tuple[LocalName, ...]:
    found = (name for text in texts if (name := read_local_name(text)) is not None)
    return tuple(itertools.islice(found, LOCAL_NAMES_LIMIT))


def _candidate(text: str) -> Candidate | None:
    try:
        return read_candidate(text)
    except Rejected:
        return None


def _parse(sdp: str) -> tuple[_Attributes, tuple[_Section, ...]]:
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
            if len(media) < 4 or not (media[1].isascii() and media[1].isdigit()):
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


def _formats(video: _Section) -> tuple[_Format, ...]:
    codecs = video.rtpmaps()
    fmtp = {pt: rest for pt, _, rest in (value.partition(" ") for value in video.values("fmtp"))}
    feedback = [match for value in video.values("rtcp-fb") if (match := _FEEDBACK.fullmatch(value))]
    return tuple(
        _Format(
            payload_type=int(pt),
            name=codecs[pt][2].lower(),
            clock_rate=codecs[pt][3],
            parameters=_parameters(fmtp.get(pt, "")),
            feedback=tuple(match[2] for match in feedback if match[1] in ("*", pt)),
        )
        for pt in dict.fromkeys(video.formats)
        if pt in codecs and str(int(pt)) == pt and int(pt) <= _PAYLOAD_TYPE_MAX
    )


def _parameters(text: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in text.split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


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
