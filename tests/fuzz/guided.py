"""Inputs by atheris (libFuzzer): what reaches a new line of the project is kept and changed further."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

# Before anything imports them: what is loaded already is not watched.
with atheris.instrument_imports(include=["edge"]):
    from tests.fuzz.targets import Targets

from tests.fuzz.corpus import corpus
from tests.fuzz.mutations import mutated
from tests.fuzz.progress import Progress

_LONGEST = 40_000
_ONE_INPUT_S = 20


def run(letters: bytes, inputs: int, seed: int, found: Path) -> None:
    """Of inputs that begin with one of `letters`.

    Does not return: libFuzzer ends the process, with a file `guided-...` below `found` where an input raised.
    """
    targets, progress = Targets(), Progress(inputs)
    seeds = [data for data in corpus().values() if data[:1] in letters]

    def one(data: bytes) -> None:
        if data[:1] and data[:1] in letters:
            targets.run(data)
        progress.one(targets.doors.outcomes)

    def mutate(data: bytes, max_size: int, at: int) -> bytes:
        chance = random.Random(at)
        data = bytes(data) if data[:1] and data[:1] in letters else letters[:1]
        if chance.random() < 0.7:
            return mutated(data, chance, seeds)[:max_size]
        changed: bytes = atheris.Mutate(data[1:], max_size - 1)
        return data[:1] + changed

    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(seeds):
            (Path(directory) / str(number)).write_bytes(data)
        arguments = [f"-artifact_prefix={found}/guided-", f"-max_len={_LONGEST}", f"-timeout={_ONE_INPUT_S}"]
        arguments += [f"-seed={seed}", f"-atheris_runs={inputs}", "-rss_limit_mb=2048", directory]
        atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=mutate)
        atheris.Fuzz()
