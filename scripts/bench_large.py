"""Time and memory on a large model: `python -m scripts.bench large [--gb N] [--json]`.

A model of that size is generated (`models.large`), then copied, optimized and copied again, in turn, each round with
the files in the system's cache as far as they fit; then onnxslim and onnxsim try it, and `normfuse verify` judges the
pair. Copying includes bringing the copy to the disk (fsync), as writing a model does.

Memory is anonymous memory of the process and its children (RssAnon of /proc), sampled; pages of mapped files are not
counted, as the system may drop them. So this runs on Linux only. Whoever exceeds `MEMORY_LIMIT` is ended.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.large import write_large
from normfuse.errors import NormfuseError
from scripts.peers import PEERS, interpreter

MEMORY = 1.5e9
"""Bytes of anonymous memory that optimizing may take."""

RATIO = 3.0
"""How many times as long as copying it may take."""

MEMORY_LIMIT = 15e9
"""Bytes of anonymous memory at which a process is ended."""

SECONDS_LIMIT = 900.0
RIVALS = ("onnxslim", "onnxsim")

_INTERVAL = 0.01


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took.

    Attributes:
        seconds: wall time.
        anonymous: the most anonymous memory at once, in bytes, of it and its children.
        problem: why it failed, in one line, or empty.
    """

    seconds: float
    anonymous: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LargeBench:
    """All that was measured.

    Attributes:
        gigabytes: of the model and its data file.
        copying: seconds, by round.
        optimizing: of `normfuse optimize --no-verify`, by round.
        rivals: other optimizers, by name.
        verifying: of `normfuse verify`; None where that was left out.
    """

    gigabytes: float
    copying: tuple[float, ...]
    optimizing: tuple[Usage, ...]
    rivals: dict[str, Usage]
    verifying: Usage | None

    @property
    def ratio(self) -> float:
        """Time of optimizing in times of copying, the median of the rounds."""
        pairs = zip(self.optimizing, self.copying, strict=True)
        return statistics.median(usage.seconds / seconds for usage, seconds in pairs)

    @property
    def anonymous(self) -> int:
        """The most anonymous memory of all rounds."""
        return max(usage.anonymous for usage in self.optimizing)

    @property
    def passed(self) -> bool:
        """Whether normfuse keeps its limits, and proves what it wrote where that was asked for."""
        done = all(not usage.problem for usage in (*self.optimizing, *([self.verifying] if self.verifying else [])))
        return done and self.anonymous < MEMORY and self.ratio <= RATIO


def watch(command: Sequence[str], log: Path, seconds: float = SECONDS_LIMIT, limit: float = MEMORY_LIMIT) -> Usage:
    """Runs a command to its end, or until it takes too long or too much memory.

    Args:
        command: the program and its arguments.
        log: where its output goes.
        seconds: how long it may take.
        limit: bytes of anonymous memory that it and its children may take.
    """
    start, peak, problem = time.perf_counter(), 0, ""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, sum(_anonymous(number) for number in _family(process.pid)))
            if peak > limit:
                problem = f"more than {limit / 1e9:.1f} GB of anonymous memory"
            elif time.perf_counter() - start > seconds:
                problem = f"not done after {seconds:.0f} s"
            if problem:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(_INTERVAL)
    spent = time.perf_counter() - start
    if process.returncode and not problem:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        problem = lines[-1].strip() if lines else f"exit status {process.returncode}"
    return Usage(spent, peak, problem)


def _anonymous(number: int) -> int:
    """Anonymous memory of a process in bytes; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{number}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _family(number: int) -> list[int]:
    """A process and its children, and theirs."""
    found = [number]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in tasks.read_text().split())
            except OSError:
                continue
    return found


def copy(source: Path, target: Path) -> float:
    """Copies a model and its data file to the disk; the seconds that takes."""
    start = time.perf_counter()
    for suffix in ("", ".data"):
        shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")
        with open(f"{target}{suffix}", "rb") as file:
            os.fsync(file.fileno())
    spent = time.perf_counter() - start
    for suffix in ("", ".data"):
        os.unlink(f"{target}{suffix}")
    return spent


def measure(size: int, place: Path, rounds: int, rivals: Sequence[str], verifies: bool, width: int = 0) -> LargeBench:
    """Measures everything on a model of `size` bytes in the folder `place`.

    Raises:
        NormfuseError: the other optimizers cannot be installed.
    """
    source, result = place / "model.onnx", place / "normfuse.onnx"
    write_large(source, size, width)
    written = source.stat().st_size + Path(f"{source}.data").stat().st_size
    normfuse = [sys.executable, "-m", "normfuse"]
    copying, optimizing = [], []
    for _ in range(rounds):
        _remove(result)
        copying.append(copy(source, place / "copy.onnx"))
        optimizing.append(
            watch([*normfuse, "optimize", str(source), "-o", str(result), "--no-verify"], place / "normfuse.log")
        )
    verifying = watch([*normfuse, "verify", str(source), str(result)], place / "verify.log") if verifies else None
    _remove(result)
    others = {}
    for peer in (peer for peer in PEERS if peer.name in rivals):
        target = place / "rival.onnx"
        usage = watch([str(interpreter()), *peer.arguments, str(source), str(target)], place / f"{peer.name}.log")
        if not usage.problem and not target.is_file():
            usage = Usage(usage.seconds, usage.anonymous, "wrote nothing")
        others[peer.name] = usage
        _remove(target)
    return LargeBench(written / 1e9, tuple(copying), tuple(optimizing), others, verifying)


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _line(name: str, usage: Usage, copying: float) -> str:
    if usage.problem:
        return f"{name:<18} cannot: {usage.problem} ({usage.seconds:.1f} s, {usage.anonymous / 1e9:.2f} GB anonymous)"
    memory = f"{usage.anonymous / 1e9:6.2f} GB anonymous"
    return f"{name:<18} {usage.seconds:7.1f} s  × {usage.seconds / copying:5.2f}  {memory}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was measured; the exit status is 1 where normfuse misses a limit."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench large", description="Time and memory, large model.")
    parser.add_argument("--gb", type=float, default=6.0, help="gigabytes of weights (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="how often to copy and to optimize (default: 3)")
    parser.add_argument("--folder", help="where the files are written (default: the temporary folder)")
    parser.add_argument("--no-rivals", action="store_true", help="leave out other optimizers")
    parser.add_argument("--no-verify", action="store_true", help="leave out `normfuse verify`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/status").exists():
        print("error: anonymous memory is read from /proc, which is not here; run it on Linux", file=sys.stderr)
        return 2
    if options.gb <= 0 or options.rounds < 1:
        parser.error("--gb and --rounds must be greater than 0")
    size = int(options.gb * 1e9)
    with tempfile.TemporaryDirectory(prefix="normfuse-", dir=options.folder) as place:
        free = shutil.disk_usage(place).free
        if free < 4 * size:
            print(
                f"error: {4 * size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free in {place}", file=sys.stderr
            )
            return 2
        try:
            rivals = () if options.no_rivals else RIVALS
            bench = measure(size, Path(place), options.rounds, rivals, not options.no_verify)
        except NormfuseError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
    if options.json:
        figures = {"ratio": bench.ratio, "anonymous": bench.anonymous, "passed": bench.passed}
        print(json.dumps({"schema_version": 1, **asdict(bench), **figures}, indent=2))
        return int(not bench.passed)
    print(f"model and data: {bench.gigabytes:.2f} GB; copying it: {', '.join(f'{s:.1f} s' for s in bench.copying)}")
    for usage, seconds in zip(bench.optimizing, bench.copying, strict=True):
        print(_line("normfuse optimize", usage, seconds))
    usual = statistics.median(bench.copying)
    for name, usage in bench.rivals.items():
        print(_line(name, usage, usual))
    if bench.verifying is not None:
        print(_line("normfuse verify", bench.verifying, usual))
    print(
        f"{'passed' if bench.passed else 'FAILED'}: × {bench.ratio:.2f} of copying (at most {RATIO:g}), "
        f"{bench.anonymous / 1e9:.2f} GB of anonymous memory (less than {MEMORY / 1e9:g})"
    )
    return int(not bench.passed)
