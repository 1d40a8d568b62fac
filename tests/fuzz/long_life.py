"""Send all messages to one device, each a mutated seed: state that is kept for too long shows as memory growth."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.fuzz.corpus import EXPIRES_AT, corpus
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.mqtt.broker import Message
    from tests.fuzz.progress import Progress
    from tests.fuzz.targets import Targets

EXPIRES_S = b"1795176060"
"""The expiry time in the tokens of the seeds."""


def _at(data: bytes, wall_s: float, number: int) -> bytes:
    """Adapt a seed to the time `wall_s`: not expired, and in most cases not a repetition."""
    expires_at = datetime.fromtimestamp(wall_s + 30, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = data.replace(EXPIRES_AT.encode(), expires_at.encode()).replace(EXPIRES_S, b"%d" % (wall_s + 60))
    for name in (b'"id": "', b'\\"jti\\": \\"'):
        data = data.replace(name, name + b"%d-" % (number // 2))
    return data


def run(targets: Targets, progress: Progress, seed: int, found: Callable[[bytes], None]) -> None:
    """Run the stage. `found` is called with an input that raised; the same seed repeats the inputs before it.

    Raises: the exception of that input.
    """
    rng = random.Random(seed)
    seeds = [data for data in corpus().values() if data[:1] in b"or"]
    for authority in (False, True):
        last = progress.done + (progress.inputs - progress.done) // (1 if authority else 2)
        letter = b"r" if authority else b"o"

        def next_messages(wall_s: float, last: int = last, letter: bytes = letter) -> list[Message] | None:
            if progress.done == last:
                return None
            progress.one(targets.commands.outcomes)
            data = mutate(_at(rng.choice(seeds), wall_s, progress.done), rng, seeds)
            progress.begin(letter + data[1:])
            return messages(data[1:])

        try:
            targets.commands.run_long(next_messages, authority=authority)
        except BaseException:
            found(progress.latest)
            raise
