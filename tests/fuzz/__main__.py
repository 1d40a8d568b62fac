"""Hostile input for the MQTT door and the SDP door, a million of it: `./dev fuzz [--inputs N] [--only STAGE]`.

Stages, each a process: `engine` and `structured` by Hypothesis, with aiortc itself and without; `guided-` by coverage
(atheris); `long`, one door that takes it all. Whatever comes, each message has to have one outcome, an effect or a
code, in bounded time and memory. What breaks that is written down, and `--again FILE` runs it again; see
docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GUIDED = {"guided-mqtt": b"or", "guided-sdp": b"s", "guided-text": b"citj"}
"""By the letters that their inputs begin with: in one process those that are fast would hardly come to their turn."""
SHARES = {
    "engine": 0.01,
    "structured": 0.03,
    "guided-mqtt": 0.2,
    "guided-sdp": 0.14,
    "guided-text": 0.3,
    "long": 0.32,
}
GROWTH_MB = {**dict.fromkeys(GUIDED, 64), "long": 8}
"""Beyond what a stage takes after a tenth of its way; libFuzzer keeps every input that reached something new.
Hypothesis keeps far more than that, so its stages are not judged."""
GROWTH_OBJECTS = 5000


def run_stage(name: str, inputs: int, seed: int, found: Path) -> None:
    """In this process."""
    if name in GUIDED:
        from tests.fuzz import guided

        guided.run(GUIDED[name], inputs, seed, found)
        return
    from tests.fuzz import long_life, structured
    from tests.fuzz.progress import Progress
    from tests.fuzz.targets import Targets

    def keep(data: bytes) -> None:
        path = found / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
        path.write_bytes(data)

    def hung() -> None:
        keep(progress.latest)
        faulthandler.dump_traceback()
        os._exit(1)

    progress = Progress(inputs, hung)
    with Targets(engine=name == "engine") as targets:
        if name == "long":
            long_life.run(targets, progress, seed, keep)
        else:
            strategy = structured.FOR_THE_ENGINE if name == "engine" else structured.INPUTS
            structured.run(strategy, targets, progress, seed, keep)


class Stage:
    """A stage in a process of its own, and what it told."""

    def __init__(self, name: str, inputs: int, seed: int, found: Path) -> None:
        self.name, self.inputs = name, inputs
        self.told: dict[str, Any] = {}
        self.edges: list[int] = []
        self.errors: list[str] = []
        command = [sys.executable, "-m", "tests.fuzz", "--stage", name, "--inputs", str(inputs)]
        command += ["--seed", str(seed), "--found", str(found)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )

    def run(self) -> bool:
        """Until it ends, with its progress on standard error; whether all was well."""
        reader = threading.Thread(target=self._read_errors)
        reader.start()
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    self.told = json.loads(line)
                    covered = f", {self.edges[-1]} edges" if self.edges else ""
                    show(f"{self.name}: {self.told['inputs']} of {self.inputs}, {self.told['per_s']}/s{covered}")
        except BaseException:
            self._process.kill()
            raise
        finally:
            reader.join()
            self._process.stdout.close()
        well = self._process.wait() == 0 and self.told.get("inputs") == self.inputs
        show("")
        if not well:
            print("".join(self.errors), file=sys.stderr)
        return well

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if match := re.match(r"#\d+\s.*\bcov: (\d+)", line):
                    self.edges.append(int(match[1]))
                else:
                    self.errors = [*self.errors[-80:], line]

    def faults(self) -> list[str]:
        """What its memory says."""
        if self.name not in GROWTH_MB:
            return []
        (mb, now_mb), (objects, objects_now) = self.told["rss_mb"], self.told["objects"]
        faults = []
        if now_mb - mb > GROWTH_MB[self.name]:
            faults.append(f"{self.name}: memory grew from {mb} to {now_mb} MB")
        if objects_now - objects > GROWTH_OBJECTS:
            faults.append(f"{self.name}: {objects_now - objects} objects more than at its begin")
        return faults

    def report(self) -> str:
        """Its figures in a line."""
        (mb, now_mb), (objects, objects_now) = self.told["rss_mb"], self.told["objects"]
        covered = f"{self.edges[0]} edges from the seeds, {self.edges[-1]} at last; " if self.edges else ""
        return (
            f"{self.name:12}{self.inputs:8} inputs, {self.told['per_s']}/s; {covered}"
            f"memory {mb} to {now_mb} MB, {objects_now - objects:+} objects"
        )


def show(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def again(paths: list[Path]) -> None:
    from tests.fuzz.targets import Targets

    with Targets(engine=True) as targets:
        for path in paths:
            targets.run(path.read_bytes())
            print(f"{path}: well")


def shares(inputs: int, only: str | None) -> dict[str, int]:
    """How many inputs each stage gets."""
    if only:
        return {only: inputs}
    counts = {name: int(share * inputs) for name, share in SHARES.items()}
    if platform.machine() != "x86_64":
        print("atheris is there for x86-64 alone: no stages by coverage on this machine", file=sys.stderr)
        counts = {name: count for name, count in counts.items() if name not in GUIDED}
    return {**counts, "long": counts["long"] + inputs - sum(counts.values())}


def fuzz(inputs: int, only: str | None, seed: int, found: Path) -> int:
    begun_s = time.monotonic()
    found.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, int] = {}
    for name, count in shares(inputs, only).items():
        known = set(found.iterdir())
        stage = Stage(name, count, seed, found)
        well = stage.run()
        for path in sorted(set(found.iterdir()) - known):
            print(f"{path}: run it again with: ./dev fuzz --again {path}")
        faults = stage.faults() if well else [f"{name}: ended after {stage.told.get('inputs', 0)} inputs, see above"]
        if faults:
            print("\n".join(faults))
            print(f"the same inputs once more: ./dev fuzz --only {name} --inputs {count} --seed {seed}")
            return 1
        print(stage.report(), flush=True)
        for outcome, times in stage.told["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + times
    print("what became of the messages:", ", ".join(f"{name} {outcomes[name]}" for name in sorted(outcomes)))
    print(f"{inputs} inputs in {time.monotonic() - begun_s:.0f} s: each had one outcome, and nothing grew")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./dev fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--only", choices=SHARES)
    parser.add_argument("--seed", type=int, default=1, help="other inputs; the same seed gives the same ones")
    parser.add_argument("--found", type=Path, default=HERE / "found", help="where inputs go that break something")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE", help="only these")
    parser.add_argument("--stage", choices=SHARES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.inputs, options.seed, options.found)
    elif options.again:
        again(options.again)
    else:
        sys.exit(fuzz(options.inputs, options.only, options.seed, options.found))


if __name__ == "__main__":
    main()
