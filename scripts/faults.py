"""Saves killed, disks filled, targets in the way, and hostile files: `python -m scripts.faults --minutes 4`.

Whatever happens to a save, its target must be the old file or the new one, whole: it is loaded, by onnx too, and has
the fingerprint of one of them; and the next save must succeed. What the system does not allow is not run, and said to
be so. The exit status is 1 where anything was lost or left behind, or a hostile file was not refused as it should be.

Only a kill may leave something: temporary files, which the next save in the folder removes; and, if it comes between
two renames, the data file of the model that is not in place, which nothing reads.
"""

import argparse
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from normfuse.certificates import fingerprint
from normfuse.errors import NormfuseError
from normfuse.model import load, save
from scripts.hostile import campaign

ROOT = Path(__file__).resolve().parent.parent

KINDS = ("inline", "external")
"""Models whose weights lie in the file, and in a data file beside it."""

MEBIBYTES = 4
"""Size of a model's weights."""

NOBODY = 65534
"""The user who may write nothing."""


@dataclass(slots=True)
class Row:
    """What became of the rounds of one case.

    Attributes:
        case: what was done to the saves.
        rounds: how often.
        old: how often the target was the old file afterwards.
        new: how often it was the new one.
        refused: how often the save said why it could not be made.
        lost: how often the target was neither, or the next save failed, or something was left that must not be.
        left: files that a kill left, before the next save.
        orphans: of these, files that are still there after it: data files that nothing reads.
        note: why it was not run, or what was lost.
    """

    case: str
    rounds: int = 0
    old: int = 0
    new: int = 0
    refused: int = 0
    lost: int = 0
    left: int = 0
    orphans: int = 0
    note: str = ""

    def fault(self, what: str) -> None:
        """Counts something lost; the note keeps the first."""
        self.lost += 1
        self.note = self.note or " ".join(what.split())[:200]


@dataclass(slots=True)
class Stage:
    """A folder with a target, and two models to save to it.

    Attributes:
        folder: where the target lies.
        models: what is saved, old and new.
        prints: the fingerprints of these.
    """

    folder: Path
    models: tuple[ir.Model, ir.Model]
    prints: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Takes the fingerprints."""
        self.prints = fingerprint(self.models[0]), fingerprint(self.models[1])

    @property
    def target(self) -> Path:
        """The file."""
        return self.folder / "model.onnx"

    def judge(self, row: Row) -> None:
        """Counts which of the two models the target is; it is lost where it is neither."""
        try:
            found = fingerprint(load(self.target))
            onnx.load(self.target)
        except Exception as error:
            row.fault(f"the target cannot be read: {type(error).__name__}: {error}")
            return
        if found == self.prints[0]:
            row.old += 1
        elif found == self.prints[1]:
            row.new += 1
        else:
            row.fault("the target is neither of the models")

    def strangers(self) -> set[str]:
        """Files in the folder that do not belong to the target."""
        own = {self.target.name}
        for value in load(self.target).graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                own.add(os.path.basename(value.const_value.path))
        return set(os.listdir(self.folder)) - own

    def refuses(self, row: Row, number: int = 1, path: Path | None = None) -> None:
        """Saves where it must be refused, with one line; the target stays what it was and nothing is left."""
        before = set(os.listdir(self.folder))
        row.rounds += 1
        try:
            save(self.models[number], path or self.target)
        except NormfuseError as error:
            row.refused += 1
            if "\n" in str(error):
                row.fault(f"a message of several lines: {error}")
        except Exception as error:
            row.fault(f"{type(error).__name__}: {error}")
        else:
            row.fault("the save was not refused")
        if more := set(os.listdir(self.folder)) - before:
            row.fault(f"left behind: {', '.join(sorted(more))}")


def made(seed: int, mebibytes: float = MEBIBYTES) -> onnx.ModelProto:
    """A model of two matrices and a vector of random numbers."""
    rng = np.random.default_rng(seed)
    width = max(16, int((mebibytes * 2**20 / 8) ** 0.5))
    arrays = {
        "w": rng.normal(size=(width, width)).astype(np.float32),
        "v": rng.normal(size=(width, width)).astype(np.float32),
        "b": rng.normal(size=width).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["u"]),
        helper.make_node("Add", ["u", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy")
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@contextmanager
def staged(kind: str, seed: int, folder: Path | None = None, mebibytes: float = MEBIBYTES) -> Iterator[Stage]:
    """A target that holds the old model, whose sources lie elsewhere."""
    with tempfile.TemporaryDirectory() as place:
        models = []
        for name, number in (("old", seed), ("new", seed + 1)):
            path = Path(place, name + ".onnx")
            external = kind == "external"
            onnx.save(made(number, mebibytes), path, save_as_external_data=external, location=f"{name}.bin")
            models.append(load(path))
        own = folder or Path(place, "target")
        own.mkdir(exist_ok=True)
        stage = Stage(own, (models[0], models[1]))
        save(models[0], stage.target)
        yield stage


def forked(work: Callable[[], object]) -> int:
    """A process that does something; its status is 0 if it was done, 3 if normfuse refused it, else 70."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those of BLAS hold no locks that matter here
        child = os.fork()
    if child:
        return child
    status = 70
    try:
        work()
        status = 0
    except NormfuseError:
        status = 3
    finally:
        os._exit(status)
    return 0


def status_of(child: int) -> int:
    """Waits for a process: its status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_saves(kind: str, rounds: int, seed: int, mebibytes: float = MEBIBYTES) -> Row:
    """Processes that save the one model and the other, over and over, each killed at a random moment."""
    row = Row(f"save killed, {kind}")
    rng = random.Random(f"{kind} {seed}")
    with staged(kind, seed, mebibytes=mebibytes) as stage:
        start = time.monotonic()
        save(stage.models[1], stage.target)
        span = 3 * (time.monotonic() - start)

        def work() -> None:
            while True:
                for model in stage.models:
                    save(model, stage.target)

        for number in range(rounds):
            before = stage.strangers()
            child = forked(work)
            time.sleep(rng.uniform(0, span))
            os.kill(child, signal.SIGKILL)
            if (status := status_of(child)) != -signal.SIGKILL:
                row.fault(f"the process ended with {status} before it was killed")
            row.rounds += 1
            stage.judge(row)
            row.left += len(stage.strangers() - before)
            _save_again(stage, row, number % 2)
            after = stage.strangers() - before
            row.orphans += len(after)
            if any(not name.endswith(".data") for name in after):
                row.fault(f"left behind by the next save: {', '.join(sorted(after))}")
    return row


def _save_again(stage: Stage, row: Row, number: int) -> None:
    try:
        save(stage.models[number], stage.target)
        if fingerprint(load(stage.target)) != stage.prints[number]:
            row.fault("the next save is not what was saved")
    except Exception as error:
        row.fault(f"the next save failed: {type(error).__name__}: {error}")


def rivals(kind: str, rounds: int, seed: int, processes: int = 3, mebibytes: float = MEBIBYTES) -> Row:
    """Processes that write the same target at once: one of them wins, and nothing else is left."""
    row = Row(f"{processes} processes at once, {kind}")
    with staged(kind, seed, mebibytes=mebibytes) as stage:
        for _ in range(rounds):
            children = [
                forked(lambda model=stage.models[i % 2]: save(model, stage.target))  # type: ignore[misc]
                for i in range(processes)
            ]
            for status in map(status_of, children):
                if status:
                    row.fault(f"a save ended with {status}")
            row.rounds += 1
            stage.judge(row)
            if left := stage.strangers():
                row.fault(f"left behind: {', '.join(sorted(left))}")
                break
    return row


def full_files(kind: str, rounds: int, seed: int, mebibytes: float = MEBIBYTES) -> Row:
    """Files that may not grow beyond a random size: a write fails half-way."""
    row = Row(f"file size limited, {kind}")
    rng = random.Random(f"full {kind} {seed}")
    with staged(kind, seed, mebibytes=mebibytes) as stage:
        before = set(os.listdir(stage.folder))
        for _ in range(rounds):
            limit = rng.randrange(int(0.9 * mebibytes * 2**20))

            def work(limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                save(stage.models[1], stage.target)

            status = status_of(forked(work))
            row.rounds += 1
            row.refused += status == 3
            if status != 3:
                row.fault(f"a save that does not fit ended with {status}")
            stage.judge(row)
            if more := set(os.listdir(stage.folder)) ^ before:
                row.fault(f"left behind: {', '.join(sorted(more))}")
        _save_again(stage, row, 1)
    return row


@contextmanager
def mounted(mebibytes: float) -> Iterator[Path]:
    """A small file system in memory.

    Raises:
        OSError: this user, or this system, may not mount one.
    """
    with tempfile.TemporaryDirectory() as place:
        size = f"size={int(mebibytes * 1024)}k,mode=777"
        _mount("-t", "tmpfs", "-o", size, "tmpfs", place)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EPERM, " ".join(done.stderr.split()) or "mount failed")


def full_disk(kind: str, rounds: int, seed: int) -> Row:
    """A disk on which the old model fits and the new one does not, beside it."""
    row = Row(f"disk full, {kind}")
    rng = random.Random(f"disk {kind} {seed}")
    try:
        with mounted(2.2 * MEBIBYTES) as disk, staged(kind, seed, disk) as stage:
            for _ in range(rounds):
                filler = disk / "filler"
                filler.write_bytes(bytes(int(rng.uniform(0.3, 1.1) * MEBIBYTES * 2**20)))
                stage.refuses(row)
                filler.unlink()
                stage.judge(row)
            _save_again(stage, row, 1)
    except OSError as error:
        row.note = f"not run: {error.strerror or error}"
    return row


def read_only_disk(kind: str, seed: int) -> Row:
    """A disk that is read-only from some moment on."""
    row = Row(f"disk read-only, {kind}")
    try:
        with mounted(4 * MEBIBYTES) as disk, staged(kind, seed, disk) as stage:
            _mount("-o", "remount,ro", str(disk))
            stage.refuses(row)
            stage.judge(row)
            _mount("-o", "remount,rw", str(disk))
            _save_again(stage, row, 1)
    except OSError as error:
        row.note = f"not run: {error.strerror or error}"
    return row


def forbidden(kind: str, seed: int, mebibytes: float = MEBIBYTES) -> Row:
    """A folder, and then a target in it, that the user may not write."""
    row = Row(f"folder not ours, {kind}")
    with staged(kind, seed, mebibytes=mebibytes) as stage:
        before = set(os.listdir(stage.folder))
        stage.folder.chmod(0o555)

        def work() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(NOBODY)
            save(stage.models[1], stage.target)

        os.chmod(stage.folder.parent, 0o755)
        status = status_of(forked(work))
        stage.folder.chmod(0o755)
        row.rounds += 1
        row.refused += status == 3
        if status != 3:
            row.fault(f"the save ended with {status}")
        if set(os.listdir(stage.folder)) != before:
            row.fault("the folder has changed")
        stage.judge(row)
        _save_again(stage, row, 1)
    return row


def odd_targets(kind: str, seed: int, mebibytes: float = MEBIBYTES) -> Row:
    """Targets that are a folder, a pipe, a device, or a link to one of these; and places that do not exist."""
    row = Row(f"target no file, {kind}")
    with staged(kind, seed, mebibytes=mebibytes) as stage:
        folder = stage.folder
        (folder / "folder.onnx").mkdir()
        os.mkfifo(folder / "pipe.onnx")
        (folder / "null.onnx").symlink_to("/dev/null")
        (folder / "to-pipe.onnx").symlink_to("pipe.onnx")
        for path in (
            *folder.glob("*er.onnx"),
            *folder.glob("*pipe.onnx"),
            *folder.glob("null.onnx"),
            Path("/dev/null"),
        ):
            stage.refuses(row, path=path)
        for path in (folder / "missing" / "a.onnx", stage.target / "a.onnx", Path("\0.onnx")):
            stage.refuses(row, path=path)
        stage.judge(row)
        if not os.path.exists("/dev/null") or os.path.isfile("/dev/null"):
            row.fault("/dev/null is another file now")
    return row


def killed_runs(rounds: int, seed: int) -> Row:
    """Whole runs of `normfuse optimize --certificates`, killed: each of its files is missing, old or new, and whole."""
    row = Row("optimize killed")
    rng = random.Random(f"run {seed}")
    with staged("external", seed, mebibytes=0.5) as stage:
        source, records = stage.folder / "source.onnx", stage.folder / "records.json"
        onnx.save(made(seed + 7, 0.5), source)
        command = [sys.executable, "-m", "normfuse", "optimize", str(source), "-o", str(stage.target)]
        command += ["--certificates", str(records)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}

        def run() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        start = time.monotonic()
        if run().wait():
            row.fault("a run that nobody kills fails")
        span = time.monotonic() - start
        after = fingerprint(load(stage.target))
        stage.prints = stage.prints[0], after
        for _ in range(rounds):
            save(stage.models[0], stage.target)
            records.unlink(missing_ok=True)
            process = run()
            time.sleep(rng.uniform(0.5, 1.05) * span)
            process.kill()
            process.wait()
            row.rounds += 1
            stage.judge(row)
            if records.exists():
                json.loads(records.read_bytes())
        if run().wait() or fingerprint(load(stage.target)) != after:
            row.fault("the run after the kills fails")
        if left := {name for name in stage.strangers() if name.endswith(".tmp")}:
            row.fault(f"left behind: {', '.join(sorted(left))}")
    return row


def hostile_files(seconds: float, seed: int) -> Iterator[Row]:
    """What `scripts.hostile` finds, as rows."""
    for count in campaign(seconds, seed):
        row = Row(f"hostile, {count.kind}", count.cases, refused=count.refused)
        for fault in count.faults:
            row.fault(fault)
        yield row


def everything(minutes: float, seed: int) -> Iterator[Row]:
    """All cases, in about so many minutes."""
    share = minutes / 4
    for kind in KINDS:
        yield killed_saves(kind, int(200 * share) or 1, seed)
        yield rivals(kind, int(40 * share) or 1, seed)
        yield full_files(kind, int(40 * share) or 1, seed)
        yield full_disk(kind, int(20 * share) or 1, seed)
        yield read_only_disk(kind, seed)
        yield forbidden(kind, seed)
        yield odd_targets(kind, seed)
    yield killed_runs(int(12 * share) or 1, seed)
    yield from hostile_files(60 * share, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.faults", description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="about how long (4)")
    parser.add_argument("--seed", type=int, default=0, help="of sizes, moments and hostile files (0)")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args(arguments)
    heads = ("rounds", "old", "new", "refused", "lost", "left", "orphans")
    print(f"{'case':32}" + "".join(f"{head:>9}" for head in heads))
    rows = []
    for row in everything(given.minutes, given.seed):
        rows.append(row)
        print(f"{row.case:32}" + "".join(f"{getattr(row, head):>9}" for head in heads) + f"  {row.note}", flush=True)
    lost = sum(row.lost for row in rows)
    print(f"{sum(row.rounds for row in rows)} rounds, {lost} lost")
    if given.out:
        content = {"schema_version": 1, "seed": given.seed, "rows": [asdict(row) for row in rows]}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
