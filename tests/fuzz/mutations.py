"""Inputs made from others by the parts of messages: changed bytes alone would hardly get past the first check."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edge.contract.messages import BODIES

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

DEEP = "@deep@"
WILD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**200), 10**4000, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", " ", "0", "\x00", "\ud800", "a\udc00", "\u2028", "\x85", "\r\n", "é" * 64, "٣"),
    *("x" * 65, "x" * 129, "x" * 600, "x" * 33_000, [], {}, [[]], {"": None}, ["view"], DEEP),
    *("edge/v1/cam-1/reply/bff-2", "edge/v1/cam-1/reply/a/b", "edge/v1/cam-1/reply/+", "edge/v1/cam-2/reply/bff-1"),
    *("2026-11-20T12:00:20Z", "2026-11-20T12:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    *(1795176030, 1e300, "s1", "s2", "bff-1", "anna", "manage", "hd", "sd", "auto", "talk"),
    *("stun:turn.example", "turn:turn.example:0", "turns:[::1]:99999?transport=udp", "turn:evil.example"),
)
SDP_LINES = (
    *("m=video 9 UDP/TLS/RTP/SAVPF 102", "m=video 0 UDP/TLS/RTP/SAVPF 102", "m=audio 9 UDP/TLS/RTP/SAVPF 111"),
    *("m=video ² UDP/TLS/RTP/SAVPF 102", "m=video 9 TLS 1 2 3", "m=", "m=a 1 b", "m=video 9 \x00/TLS 999"),
    *(
        "a=group:BUNDLE 0 1",
        "a=group:BUNDLE ",
        "a=mid:0",
        "a=mid:",
        "a=mid:{}",
        "a=bundle-only",
        "a=sendonly",
        "a=sendrecv",
    ),
    *("a=ice-ufrag:" + "a" * 257, "a=ice-ufrag:abcd", "a=ice-pwd:" + "b" * 22, "a=setup:holdconn", "a=setup:passive"),
    *("a=fingerprint:sha-256 AA", "a=fingerprint:SHA-512 " + "AA:" * 300 + "BB", "a=fingerprint:md5 AA:BB"),
    *("a=rtpmap:102 H264/90000", "a=rtpmap:999 H264/90000", "a=rtpmap:٣ H264/90000", "a=rtpmap:0 h264/90000/2"),
    *("a=rtpmap:103 rtx/90000", "a=fmtp:103 apt=102", "a=fmtp:103 apt=103", "a=fmtp:102 packetization-mode=1"),
    *("a=fmtp:102 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1", "a=fmtp:102 ;;=;=="),
    *("a=fmtp:102 profile-level-id=64001f;packetization-mode=1", "a=fmtp:102 profile-level-id=ffffff"),
    *(
        "a=extmap:1 urn:x",
        "a=extmap:14/recvonly urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=extmap:1 a\x0bb",
        "a=extmap:15 urn:x",
    ),
    *("a=rtcp-fb:* nack pli", "a=rtcp-fb:102 goog-remb", "a=rtcp-fb:102 ccm fir tmmbr", "a=end-of-candidates"),
    *("a=candidate:1 1 udp 1 192.0.2.1 9 typ host", "a=candidate:1 1 udp 9999999999 ::1 65536 typ host"),
    *("a=candidate:1 1 udp 1 192.0.2.7 9 typ prflx", "a=candidate:1 1 udp 1 255.255.255.255 9 typ host"),
    *("a=candidate:1 1 udp 1 fe80::1%x 9 typ relay", "a=candidate:1 1 tcp 1 192.0.2.1 9 typ host", "a=candidate:"),
    *("v=0", "a=", "a=" + "x" * 3000, "", "\x00", "a=mid:0\u2028a=setup:active", "a=rtcp-mux"),
)
_WORD = re.compile(rb"[A-Za-z0-9_.+-]+")
_WORDS = (
    b"",
    b"0",
    b"-1",
    b"65536",
    b"9" * 30,
    b"\xff\xfe",
    b"\xd9\xa3",
    b"%",
    b"null",
    b"NaN",
    b"[" * 2000,
    b'{"a":' * 900,
)


def mutated(data: bytes, chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Another input of the same kind, by one to four changes."""
    letter, text = data[:1], data[1:]
    for _ in range(chance.choice((1, 1, 2, 4))):
        if letter in b"or":
            text = _of_messages(text, chance, [seed[1:] for seed in seeds if seed[:1] in b"or"])
        elif letter == b"s":
            text = sdp_mutated(text.decode(errors="replace"), chance).encode()
        elif letter in b"ij" and chance.random() < 0.7:
            text = _of_json(text, chance)
        else:
            text = _of_words(text, chance)
    return letter + text


def sdp_mutated(sdp: str, chance: random.Random) -> str:
    """With a line taken out, twice, elsewhere, changed, or one of those that hurt."""
    lines = sdp.split("\n")
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[at : at + chance.choice((1, 1, 5))]
        case 1:
            lines[at:at] = [lines[at]] * chance.choice((1, 1, 1, 40, 2000))
        case 2:
            lines.insert(chance.randrange(len(lines)), lines.pop(at))
        case 3:
            lines[at] = _of_words(lines[at].encode(errors="replace"), chance).decode(errors="replace")
        case _:
            lines.insert(at, chance.choice(SDP_LINES))
    return "\n".join(lines)


def _of_messages(text: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    lines = text.split(b"\n")
    at = chance.randrange(len(lines))
    match chance.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(at, chance.choice(chance.choice(others).split(b"\n")))
        case 3:
            lines[at] = b"@edge/v1/cam-1/reply/bff-" + chance.choice((b"1 ", b"2 ", b"/ ", b"")) + lines[at]
        case 4:
            lines[at] = _of_words(lines[at], chance)
        case _:
            lines[at] = _of_json(lines[at], chance)
    return b"\n".join(lines[:40])


def _of_words(text: bytes, chance: random.Random) -> bytes:
    words = list(_WORD.finditer(text))
    if not words:
        return text + chance.choice(_WORDS)
    word = chance.choice(words)
    return text[: word.start()] + chance.choice((*_WORDS, chance.choice(words)[0])) + text[word.end() :]


def _of_json(text: bytes, chance: random.Random) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _of_words(text, chance)
    if isinstance(value, dict) and "token" in value and chance.random() < 0.3:
        value["token"] = _of_json(str(value["token"]).encode(errors="replace"), chance).decode(errors="replace")
        return written(value)
    if isinstance(value, dict) and chance.random() < 0.1:
        value["type"] = chance.choice(sorted(BODIES))
        return written(value)
    text = written(_node_changed(value, chance))
    if isinstance(value, dict) and value and text.endswith(b"}") and chance.random() < 0.1:  # a key twice
        text = text[:-1] + b", " + written({chance.choice(list(value)): chance.choice(WILD)})[1:]
    return text


def _node_changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if key == "sdp" and isinstance(value[key], str) and chance.random() < 0.8:
            return {**value, key: sdp_mutated(value[key], chance)}
        match chance.randrange(8):
            case 0:
                return {name: kept for name, kept in value.items() if name != key}
            case 1:
                return {**value, chance.choice(("", "x", "session", "viewer", "audio", "\ud800")): chance.choice(WILD)}
            case _:
                return {**value, key: _node_changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [
            *value[:at],
            _node_changed(value[at], chance),
            *value[at : at + chance.choice((0, 1, 9))],
            *value[at + 1 :],
        ]
    return chance.choice(WILD)


def written(value: Any) -> bytes:
    """As JSON, with a depth that Python's own writer does not take."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 900 + "]" * 900).encode()
