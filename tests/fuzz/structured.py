"""Inputs from Hypothesis: sequences of messages and offers, which shrink to a minimal failing input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from edge.contract.messages import BODIES, RESERVED
from tests.fuzz.corpus import EXPIRES_AT, OFFERS
from tests.fuzz.mqtt_commands import NOW
from tests.fuzz.mutations import SDP_LINES, WILD, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.progress import Progress
    from tests.fuzz.targets import Targets

_BATCH = 2000
"""Examples per run of Hypothesis, which keeps all of them in memory."""
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
        st.sampled_from(("remove", "repeat", "repeat often", "move first")) | st.sampled_from(SDP_LINES) | TEXT,
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
    """A recorded offer with lines removed, repeated, moved to the front, or inserted."""
    lines = draw(st.sampled_from(SDPS)).split("\r\n")
    for share, edit in draw(EDITS):
        at = int(share * len(lines))
        match edit:
            case "remove":
                del lines[at : at + 1]
            case "repeat" | "repeat often":
                lines[at:at] = lines[at : at + 1] * (1 if edit == "repeat" else 300)
            case "move first":
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


def _mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual value in 29 of 30 cases: otherwise no message would get past its first field."""
    return st.integers(0, 29).flatmap(lambda chance: JSON if chance == 29 else usual)


def _body(kind: str) -> st.SearchStrategy[Any]:
    names = [name for name in BODIES[kind].model_fields if name in FIELDS] if kind in BODIES else []
    needed = {"sdp", "session", "candidate", "quality"} if kind != "session.offer" else {"sdp"}
    return st.fixed_dictionaries(
        {name: _mostly(FIELDS[name]) for name in names if name in needed},
        optional={name: _mostly(FIELDS[name]) for name in names if name not in needed},
    )


CLAIMS = st.fixed_dictionaries(
    {
        "aud": _mostly(st.just("cam-1")),
        "sub": _mostly(NAMES),
        "exp": _mostly(st.floats(NOW.timestamp() - 20, NOW.timestamp() + 620)),
        "jti": _mostly(NAMES),
        "scope": _mostly(st.just("view control manage") | st.just(["view"])),
    },
    optional={"client": _mostly(st.sampled_from(("bff-1", "bff-2", "bff/#"))), "nbf": JSON},
)


@st.composite
def commands(draw: st.DrawFn) -> bytes:
    """One message: an envelope with a matching body, in which any part may be replaced; or arbitrary bytes."""
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
    envelope = {name: draw(_mostly(strategy)) for name, strategy in usual.items()}
    if draw(st.integers(0, 9)) == 9:
        del envelope[draw(st.sampled_from(sorted(envelope)))]
    text = to_json(envelope)
    if draw(st.integers(0, 15)) == 15:  # a duplicate key: the last one counts
        text = text[:-1] + b", " + to_json({draw(st.sampled_from(sorted(usual))): draw(JSON)})[1:]
    return draw(st.sampled_from((b"", b"", b"", b"@edge/v1/cam-1/reply/bff-2 ", b"@x "))) + text


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


INPUTS = st.one_of(
    st.tuples(st.sampled_from((b"o", b"r")), st.lists(commands(), min_size=1, max_size=6).map(b"\n".join)),
    st.tuples(st.just(b"s"), sdps().map(_encoded)),
    st.tuples(st.just(b"c"), (CANDIDATES | TEXT).map(lambda text: _encoded(text or ""))),
    st.tuples(st.just(b"i"), (SERVERS | JSON).map(to_json)),
    st.tuples(st.just(b"j"), CLAIMS.map(to_json) | JSON.map(to_json)),
).map(b"".join)


ENGINE_INPUTS = st.tuples(st.just(b"e"), sdps().map(_encoded)).map(b"".join)


def run(
    inputs: st.SearchStrategy[bytes],
    targets: Targets,
    progress: Progress,
    first_seed: int,
    found: Callable[[bytes], None],
) -> None:
    """Run the stage. `found` is called with the shortest input that raised. Raises: the exception of that input."""

    def one(data: bytes) -> None:
        progress.begin(data)
        targets.run(data)
        if progress.done < progress.inputs:
            progress.one(targets.commands.outcomes)

    while progress.done < progress.inputs:
        examples = min(_BATCH, progress.inputs - progress.done)
        options = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        try:
            seed(first_seed + progress.done)(options(given(inputs)(one)))()
        except BaseException:
            found(progress.latest)
            raise
