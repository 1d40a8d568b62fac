"""Fuzz the MQTT commands and the SDP parser with a million hostile inputs: `./dev fuzz [--inputs N] [--only STAGE]`.

Each stage is a process. `engine` and `structured` use Hypothesis, with and without aiortc. The `guided-` stages are
guided by coverage (atheris). `long` sends all messages to one daemon. Each message must have exactly one outcome, an
effect or an error code, in bounded time and memory. An input that violates this is saved to a file, and
`--again FILE` runs it again; see docs/fuzzing.md.
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
"""Stages and the letters that their inputs begin with. In one process, the fast targets would get very few inputs."""
SHARES = {
    "engine": 0.01,
    "structured": 0.03,
    "guided-mqtt": 0.2,
    "guided-sdp": 0.14,
    "guided-text": 0.3,
    "long": 0.32,
}
GROWTH_MB = {**dict.fromkeys(GUIDED, 64), "long": 8}
"""Allowed growth after the first tenth of the inputs. libFuzzer keeps every input that reached new code. The
Hypothesis stages have no limit, because Hypothesis keeps far more."""
GROWTH_OBJECTS = 5000


def run_stage(name: str, inputs: int, seed: int, found: Path) -> None:
    """Run a stage in this process."""
    if name in GUIDED:
        from tests.fuzz import guided

        guided.run(GUIDED[name], inputs, seed, found)
        return
    from tests.fuzz import long_life, structured
    from tests.fuzz.progress import Progress
    from tests.fuzz.targets import Targets

    def save(data: bytes) -> None:
        path = found / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
        path.write_bytes(data)

    def on_hang() -> None:
        save(progress.latest)
        faulthandler.dump_traceback()
        os._exit(1)

    progress = Progress(inputs, on_hang)
    with Targets(engine=name == "engine") as targets:
        if name == "long":
            long_life.run(targets, progress, seed, save)
        else:
            strategy = structured.ENGINE_INPUTS if name == "engine" else structured.INPUTS
            structured.run(strategy, targets, progress, seed, save)


class Stage:
    """A stage in its own process, and the progress that it reported last."""

    def __init__(self, name: str, inputs: int, seed: int, found: Path) -> None:
        self.name, self.inputs = name, inputs
        self.progress: dict[str, Any] = {}
        self.edges: list[int] = []
        self.errors: list[str] = []
        command = [sys.executable, "-m", "tests.fuzz", "--stage", name, "--inputs", str(inputs)]
        command += ["--seed", str(seed), "--found", str(found)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )

    def run(self) -> bool:
        """Wait for the end and show the progress on standard error. Returns: whether all inputs passed."""
        reader = threading.Thread(target=self._read_errors)
        reader.start()
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    self.progress = json.loads(line)
                    covered = f", {self.edges[-1]} edges" if self.edges else ""
                    show(
                        f"{self.name}: {self.progress['inputs']} of {self.inputs}, {self.progress['per_s']}/s{covered}"
                    )
        except BaseException:
            self._process.kill()
            raise
        finally:
            reader.join()
            self._process.stdout.close()
        passed = self._process.wait() == 0 and self.progress.get("inputs") == self.inputs
        show("")
        if not passed:
            print("".join(self.errors), file=sys.stderr)
        return passed

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if match := re.match(r"#\d+\s.*\bcov: (\d+)", line):
                    self.edges.append(int(match[1]))
                else:
                    self.errors = [*self.errors[-80:], line]

    def faults(self) -> list[str]:
        """The memory limits that the stage exceeded."""
        if self.name not in GROWTH_MB:
            return []
        (mb, now_mb), (objects, objects_now) = self.progress["rss_mb"], self.progress["objects"]
        faults = []
        if now_mb - mb > GROWTH_MB[self.name]:
            faults.append(f"{self.name}: memory grew from {mb} to {now_mb} MB")
        if objects_now - objects > GROWTH_OBJECTS:
            faults.append(f"{self.name}: {objects_now - objects} objects more than at the start")
        return faults

    def report(self) -> str:
        """One line with the figures of the stage."""
        (mb, now_mb), (objects, objects_now) = self.progress["rss_mb"], self.progress["objects"]
        covered = f"{self.edges[0]} edges from the seeds, {self.edges[-1]} at the end; " if self.edges else ""
        return (
            f"{self.name:12}{self.inputs:8} inputs, {self.progress['per_s']}/s; {covered}"
            f"memory {mb} to {now_mb} MB, {objects_now - objects:+} objects"
        )


def show(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run_again(paths: list[Path]) -> None:
    from tests.fuzz.targets import Targets

    with Targets(engine=True) as targets:
        for path in paths:
            targets.run(path.read_bytes())
            print(f"{path}: passed")


def shares(inputs: int, only: str | None) -> dict[str, int]:
    """The number of inputs for each stage."""
    if only:
        return {only: inputs}
    counts = {name: int(share * inputs) for name, share in SHARES.items()}
    if platform.machine() != "x86_64":
        print("atheris supports x86-64 only: the guided stages are skipped on this machine", file=sys.stderr)
        counts = {name: count for name, count in counts.items() if name not in GUIDED}
    return {**counts, "long": counts["long"] + inputs - sum(counts.values())}


def fuzz(inputs: int, only: str | None, seed: int, found: Path) -> int:
    started_s = time.monotonic()
    found.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, int] = {}
    for name, count in shares(inputs, only).items():
        known = set(found.iterdir())
        stage = Stage(name, count, seed, found)
        passed = stage.run()
        for path in sorted(set(found.iterdir()) - known):
            print(f"{path}: to run it again: ./dev fuzz --again {path}")
        faults = (
            stage.faults() if passed else [f"{name}: ended after {stage.progress.get('inputs', 0)} inputs, see above"]
        )
        if faults:
            print("\n".join(faults))
            print(f"to repeat the same inputs: ./dev fuzz --only {name} --inputs {count} --seed {seed}")
            return 1
        print(stage.report(), flush=True)
        for outcome, times in stage.progress["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + times
    print("message outcomes:", ", ".join(f"{name} {outcomes[name]}" for name in sorted(outcomes)))
    took_s = time.monotonic() - started_s
    print(f"{inputs} inputs in {took_s:.0f} s: each had exactly one outcome, and memory did not grow")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./dev fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--only", choices=SHARES)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same inputs")
    parser.add_argument("--found", type=Path, default=HERE / "found", help="the directory for inputs that fail")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE", help="run only these files")
    parser.add_argument("--stage", choices=SHARES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.inputs, options.seed, options.found)
    elif options.again:
        run_again(options.again)
    else:
        sys.exit(fuzz(options.inputs, options.only, options.seed, options.found))


if __name__ == "__main__":
    main()
