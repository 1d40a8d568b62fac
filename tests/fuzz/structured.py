"""Inputs by Hypothesis: whole life stories of messages and offers, that shrink to what matters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from edge.contract.messages import BODIES, RESERVED
from tests.fuzz.corpus import EXPIRES_AT, OFFERS
from tests.fuzz.door import NOW
from tests.fuzz.mutations import SDP_LINES, WILD, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.progress import Progress
    from tests.fuzz.targets import Targets

_ROUND = 2000
"""Examples at a time: Hypothesis remembers all of a round."""
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
JSON = st.recursive(
    st.sampled_from(WILD) | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SDPS = tuple(path.read_text().replace("\n", "\r\n") for path in sorted(OFFERS.glob("*.sdp")))
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(("out", "twice", "often", "first")) | st.sampled_from(SDP_LINES) | TEXT,
    ),
    max_size=4,
)
NAMES = st.sampled_from(("s1", "s2", "anna", "boris"))
CANDIDATES = st.sampled_from(
    ("candidate:1 1 udp 1 192.0.2.1 9 typ host", "candidate:1 1 udp 1 ::1 9 typ relay", "a=candidate:", None, "")
)
URLS = st.sampled_from(("stun:turn.example", "turn:turn.example?transport=tcp", "turns:evil.example:1", "turn:[::1]"))


@st.composite
def sdps(draw: st.DrawFn) -> str:
    """A recorded offer with lines taken out, twice, first, or put in between."""
    lines = draw(st.sampled_from(SDPS)).split("\r\n")
    for share, edit in draw(EDITS):
        at = int(share * len(lines))
        match edit:
            case "out":
                del lines[at : at + 1]
            case "twice" | "often":
                lines[at:at] = lines[at : at + 1] * (1 if edit == "twice" else 300)
            case "first":
                lines[1:1] = lines[at : at + 1]
            case _:
                lines.insert(at, edit)
    return "\r\n".join(lines)


SERVERS = st.lists(
    st.fixed_dictionaries(
        {"urls": URLS | st.lists(URLS, max_size=3)}, optional={"username": NAMES, "credential": TEXT}
    ),
    max_size=2,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "sdp": sdps(),
    "session": NAMES,
    "viewer": NAMES,
    "trickle": st.booleans(),
    "quality": st.sampled_from(("auto", "hd", "sd", 80)),
    "ice_servers": SERVERS,
    "audio": st.sampled_from(("off", "listen", "talk")),
    "candidate": CANDIDATES,
    "sdp_mid": NAMES,
    "reason": TEXT,
    "hd": st.fixed_dictionaries({}, optional={"min_bps": st.integers(), "max_bps": st.integers(100_000, 2_000_000)}),
    "gain": st.floats() | st.integers(0, 17),
    "flip_vertical": st.booleans(),
    "zoom": st.fixed_dictionaries({name: st.floats(0, 1) for name in ("x", "y", "width", "height")}),
    "width": st.integers(15, 1921),
}


def _sometimes(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there: or else no message gets past its first field."""
    return st.integers(0, 29).flatmap(lambda chance: JSON if chance == 29 else usual)


def _body(kind: str) -> st.SearchStrategy[Any]:
    names = [name for name in BODIES[kind].model_fields if name in FIELDS] if kind in BODIES else []
    needed = {"sdp", "session", "candidate", "quality"} if kind != "session.offer" else {"sdp"}
    return st.fixed_dictionaries(
        {name: _sometimes(FIELDS[name]) for name in names if name in needed},
        optional={name: _sometimes(FIELDS[name]) for name in names if name not in needed},
    )


CLAIMS = st.fixed_dictionaries(
    {
        "aud": _sometimes(st.just("cam-1")),
        "sub": _sometimes(NAMES),
        "exp": _sometimes(st.floats(NOW.timestamp() - 20, NOW.timestamp() + 620)),
        "jti": _sometimes(NAMES),
        "scope": _sometimes(st.just("view control manage") | st.just(["view"])),
    },
    optional={"client": _sometimes(st.sampled_from(("bff-1", "bff-2", "bff/#"))), "nbf": JSON},
)


@st.composite
def commands(draw: st.DrawFn) -> bytes:
    """One message: an envelope with a body that goes with it, any of it changed now and then; or any bytes."""
    if draw(st.integers(0, 30)) == 30:
        return draw(st.binary(max_size=60)).replace(b"\n", b"")
    kind = draw(st.sampled_from((*sorted(BODIES), min(RESERVED))))
    reply_to = st.sampled_from([f"edge/v1/cam-1/reply/bff-{end}" for end in ("1", "1", "1", "2", "2", "1\n")])
    usual = {
        "v": st.just(1),
        "id": st.sampled_from("abcdefgh"),
        "type": st.just(kind),
        "expires_at": st.just(EXPIRES_AT),
        "reply_to": reply_to,
        "token": CLAIMS.map(json.dumps),
        "body": _body(kind),
    }
    envelope = {name: draw(_sometimes(strategy)) for name, strategy in usual.items()}
    if draw(st.integers(0, 9)) == 9:
        del envelope[draw(st.sampled_from(sorted(envelope)))]
    text = written(envelope)
    if draw(st.integers(0, 15)) == 15:  # a key twice: the last one counts, or should
        text = text[:-1] + b", " + written({draw(st.sampled_from(sorted(usual))): draw(JSON)})[1:]
    return draw(st.sampled_from((b"", b"", b"", b"@edge/v1/cam-1/reply/bff-2 ", b"@x "))) + text


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


INPUTS = st.one_of(
    st.tuples(st.sampled_from((b"o", b"r")), st.lists(commands(), min_size=1, max_size=6).map(b"\n".join)),
    st.tuples(st.just(b"s"), sdps().map(_encoded)),
    st.tuples(st.just(b"c"), (CANDIDATES | TEXT).map(lambda text: _encoded(text or ""))),
    st.tuples(st.just(b"i"), (SERVERS | JSON).map(written)),
    st.tuples(st.just(b"j"), CLAIMS.map(written) | JSON.map(written)),
).map(b"".join)


FOR_THE_ENGINE = st.tuples(st.just(b"e"), sdps().map(_encoded)).map(b"".join)


def run(
    inputs: st.SearchStrategy[bytes], targets: Targets, progress: Progress, at: int, found: Callable[[bytes], None]
) -> None:
    """Raises: whatever an input raised, after `found` was told the shortest such one that was found."""

    def one(data: bytes) -> None:
        progress.begin(data)
        targets.run(data)
        if progress.done < progress.inputs:
            progress.one(targets.doors.outcomes)

    while progress.done < progress.inputs:
        examples = min(_ROUND, progress.inputs - progress.done)
        quiet = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        try:
            seed(at + progress.done)(quiet(given(inputs)(one)))()
        except BaseException:
            found(progress.latest)
            raise
