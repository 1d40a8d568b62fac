"""Mutate inputs by the parts of messages: random bytes would rarely pass the first check."""

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


def mutate(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Make another input of the same kind by one to four changes."""
    letter, text = data[:1], data[1:]
    for _ in range(rng.choice((1, 1, 2, 4))):
        if letter in b"or":
            text = _mutate_messages(text, rng, [seed[1:] for seed in seeds if seed[:1] in b"or"])
        elif letter == b"s":
            text = mutate_sdp(text.decode(errors="replace"), rng).encode()
        elif letter in b"ij" and rng.random() < 0.7:
            text = _mutate_json(text, rng)
        else:
            text = _mutate_words(text, rng)
    return letter + text


def mutate_sdp(sdp: str, rng: random.Random) -> str:
    """Remove, repeat, move or change a line, or insert one of `SDP_LINES`."""
    lines = sdp.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at : at + rng.choice((1, 1, 5))]
        case 1:
            lines[at:at] = [lines[at]] * rng.choice((1, 1, 1, 40, 2000))
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        case 3:
            lines[at] = _mutate_words(lines[at].encode(errors="replace"), rng).decode(errors="replace")
        case _:
            lines.insert(at, rng.choice(SDP_LINES))
    return "\n".join(lines)


def _mutate_messages(text: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(at, rng.choice(rng.choice(others).split(b"\n")))
        case 3:
            lines[at] = b"@edge/v1/cam-1/reply/bff-" + rng.choice((b"1 ", b"2 ", b"/ ", b"")) + lines[at]
        case 4:
            lines[at] = _mutate_words(lines[at], rng)
        case _:
            lines[at] = _mutate_json(lines[at], rng)
    return b"\n".join(lines[:40])


def _mutate_words(text: bytes, rng: random.Random) -> bytes:
    words = list(_WORD.finditer(text))
    if not words:
        return text + rng.choice(_WORDS)
    word = rng.choice(words)
    return text[: word.start()] + rng.choice((*_WORDS, rng.choice(words)[0])) + text[word.end() :]


def _mutate_json(text: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _mutate_words(text, rng)
    if isinstance(value, dict) and "token" in value and rng.random() < 0.3:
        value["token"] = _mutate_json(str(value["token"]).encode(errors="replace"), rng).decode(errors="replace")
        return to_json(value)
    if isinstance(value, dict) and rng.random() < 0.1:
        value["type"] = rng.choice(sorted(BODIES))
        return to_json(value)
    text = to_json(_mutate_node(value, rng))
    if isinstance(value, dict) and value and text.endswith(b"}") and rng.random() < 0.1:  # a duplicate key
        text = text[:-1] + b", " + to_json({rng.choice(list(value)): rng.choice(WILD)})[1:]
    return text


def _mutate_node(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if key == "sdp" and isinstance(value[key], str) and rng.random() < 0.8:
            return {**value, key: mutate_sdp(value[key], rng)}
        match rng.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("", "x", "session", "viewer", "audio", "\ud800")): rng.choice(WILD)}
            case _:
                return {**value, key: _mutate_node(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [
            *value[:at],
            _mutate_node(value[at], rng),
            *value[at : at + rng.choice((0, 1, 9))],
            *value[at + 1 :],
        ]
    return rng.choice(WILD)


def to_json(value: Any) -> bytes:
    """Format as JSON. `DEEP` becomes a nesting deeper than Python's own writer supports."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 900 + "]" * 900).encode()
