"""Hostile files read, inspected and optimized, until the time is up: `python -m scripts.hostile --seconds 120`.

Each file is a function of its kind and seed: `--one fields 17` examines one again, in this process. It must be taken
or refused by an error of normfuse with a documented exit status. Workers examine the files, each under a limit of
memory and of time for one file: what ends or outlasts its worker is counted as bad, like any other exception. The exit
status is 1 where something was bad.
"""

import argparse
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.mutations import WEIGHTS, mutant

KINDS = ("bytes", "fields", "noise", "proved")
"""Bytes of a model changed; fields of one changed; bytes at random; fields changed and what is taken proved."""

MEMORY = 4 * 2**30
"""Bytes of address space that a worker may have."""

PATIENCE = 20.0
"""Seconds that a worker may take for one file; it has as much again to start."""

BUDGET = 2.0
"""Seconds that the proof of a file may take."""


@dataclass(slots=True)
class Count:
    """What became of the files of one kind.

    Attributes:
        kind: one of `KINDS`.
        cases: how many files were examined.
        refused: how many of them an error of normfuse refused.
        bad: how many crashed, hung, took too much memory, or raised anything else.
        faults: a line for each bad one, with its seed.
    """

    kind: str
    cases: int
    refused: int
    bad: int
    faults: list[str]


def hostile_file(kind: str, seed: int) -> bytes:
    """The file that a kind and a seed stand for."""
    if kind == "noise":
        rng = random.Random(seed)
        return rng.choice((b"", b"\x08\x08", b"\x08\x08\x3a")) + rng.randbytes(rng.randrange(300))
    return mutant("fields" if kind == "proved" else kind, seed)


def examine(path: str, prove: bool) -> bool:
    """Reads, inspects and optimizes a file, and writes nothing.

    Returns:
        Whether it was taken; False where it was refused as it should be.

    Raises:
        Exception: anything but a proper refusal.
    """
    from normfuse.errors import NormfuseError
    from normfuse.inspection import inspect

    taken = True
    for step in (_read, inspect, _prove if prove else _rewrite):
        try:
            step(path)
        except NormfuseError as error:
            if "\n" in str(error):
                raise AssertionError(f"a message of several lines: {error!r}") from error
            taken = False
    return taken


def _read(path: str) -> None:
    from normfuse.model import load, serialize

    serialize(load(path))


def _rewrite(path: str) -> None:
    from normfuse import pipeline

    for target in ("cpu", "portable", "cuda"):
        pipeline.optimize(path, target, verify=False)


def _prove(path: str) -> None:
    from normfuse import pipeline
    from normfuse.model import load

    pipeline.prove(load(path), verify_budget=BUDGET)


def work() -> None:
    """Examines the files named on stdin, one a line, in the current folder; the answer is one line each on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    Path("weights.bin").write_bytes(WEIGHTS)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, seed = line.split()
        Path("model.onnx").write_bytes(hostile_file(kind, int(seed)))
        try:
            answer = "taken" if examine("model.onnx", kind == "proved") else "refused"
        except Exception as error:
            answer = "bad " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(answer, flush=True)


class Worker:
    """A process that examines files; one that has died or hung is replaced."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, seed: int) -> str:
        """What became of a file: "taken", "refused", or "bad" and why."""
        if self.process is None:
            root = Path(__file__).resolve().parent.parent
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.hostile", "--work"],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(root)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if self._line() != "ready":
                raise RuntimeError("the worker does not start")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {seed}\n")
        self.process.stdin.flush()
        answer = self._line()
        if answer:
            return answer
        self.process.poll()
        status = self.process.returncode
        self.close()
        return f"bad: no answer in {PATIENCE:g} s" if status is None else f"bad: the process ended with {status}"

    def _line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            return ""
        line = self.process.stdout.readline().strip()
        if not line:
            self.process.wait(PATIENCE)
        return line

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def _worker() -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder)
        try:
            yield worker
        finally:
            worker.close()


def campaign(seconds: float, seed: int = 0) -> list[Count]:
    """Examines hostile files of each kind in turn, until the time is up.

    Args:
        seconds: how long.
        seed: of the first file of each kind; those that follow have the numbers after it.

    Returns:
        the counts, one for each kind.
    """
    counts = [Count(kind, 0, 0, 0, []) for kind in KINDS]
    end = time.monotonic() + seconds
    with _worker() as worker:
        while time.monotonic() < end:
            for count in counts:
                answer = worker.ask(count.kind, seed)
                count.cases += 1
                count.refused += answer == "refused"
                if answer.startswith("bad"):
                    count.bad += 1
                    count.faults.append(f"{count.kind} {seed}: {answer}")
                    print(count.faults[-1], file=sys.stderr, flush=True)
            seed += 1
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SEED"), help="examine one file, with its traceback")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return 0
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("weights.bin").write_bytes(WEIGHTS)
            Path("model.onnx").write_bytes(hostile_file(given.one[0], int(given.one[1])))
            print("taken" if examine("model.onnx", given.one[0] == "proved") else "refused")
            os.chdir("/")
        return 0
    counts = campaign(given.seconds, given.seed)
    print(f"{'kind':8} {'cases':>7} {'taken':>7} {'refused':>8} {'bad':>5}")
    for count in counts:
        taken = count.cases - count.refused - count.bad
        print(f"{count.kind:8} {count.cases:>7} {taken:>7} {count.refused:>8} {count.bad:>5}")
    return int(any(count.bad for count in counts))


if __name__ == "__main__":
    sys.exit(main())
