"""Inputs from atheris (libFuzzer): an input that reaches a new line of `edge/` is kept and mutated further."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

# Before any other import of edge: modules that are already loaded are not instrumented.
with atheris.instrument_imports(include=["edge"]):
    from tests.fuzz.targets import Targets

from tests.fuzz.corpus import corpus
from tests.fuzz.mutations import mutate
from tests.fuzz.progress import Progress

_INPUT_LIMIT_BYTES = 40_000
_INPUT_TIMEOUT_S = 20


def run(letters: bytes, inputs: int, seed: int, found: Path) -> None:
    """Run inputs that begin with one of `letters`.

    Does not return: libFuzzer ends the process. It writes a file `guided-...` below `found` if an input raised.
    """
    targets, progress = Targets(), Progress(inputs)
    seeds = [data for data in corpus().values() if data[:1] in letters]

    def one(data: bytes) -> None:
        if data[:1] and data[:1] in letters:
            targets.run(data)
        progress.one(targets.commands.outcomes)

    def mutator(data: bytes, max_size: int, at: int) -> bytes:
        rng = random.Random(at)
        data = bytes(data) if data[:1] and data[:1] in letters else letters[:1]
        if rng.random() < 0.7:
            return mutate(data, rng, seeds)[:max_size]
        mutated: bytes = atheris.Mutate(data[1:], max_size - 1)
        return data[:1] + mutated

    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(seeds):
            (Path(directory) / str(number)).write_bytes(data)
        arguments = [
            f"-artifact_prefix={found}/guided-",
            f"-max_len={_INPUT_LIMIT_BYTES}",
            f"-timeout={_INPUT_TIMEOUT_S}",
        ]
        arguments += [f"-seed={seed}", f"-atheris_runs={inputs}", "-rss_limit_mb=2048", directory]
        atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=mutator)
        atheris.Fuzz()
