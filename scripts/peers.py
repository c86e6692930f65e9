"""Other optimizers of ONNX models, in a virtual environment of their own, run as a user would run them.

The environment is made in the cache folder on first use, from pinned versions; it knows nothing of normfuse.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normfuse.errors import NormfuseError
from normfuse.tuning_cache import cache_folder

REQUIREMENTS = (
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxoptimizer==0.4.2",
    "onnxruntime==1.32.0",
    "onnxscript==0.7.2",
    "onnxsim==0.8.1",
    "onnxslim==0.1.98",
)
RUN_SECONDS = 180
INSTALL_SECONDS = 1800

_ONNXOPTIMIZER = """
import sys, onnx, onnxoptimizer
model = onnx.load(sys.argv[1])
passes = onnxoptimizer.get_fuse_and_elimination_passes()
onnx.save(onnxoptimizer.optimize(model, passes, fixed_point=True), sys.argv[2])
"""
_ONNXSCRIPT = """
import sys, onnx, onnxscript.optimizer
onnx.save(onnxscript.optimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])
"""
# ONNX Runtime's own optimizer, which it runs first for some kinds of network, would need torch, and makes a BERT that
# no session loads; what it writes for CUDA alone is off.
_TRANSFORMERS = """
import sys, onnx
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
source, result, kind = sys.argv[1:]
options = FusionOptions(kind)
options.enable_group_norm = options.enable_nhwc_conv = options.enable_skip_group_norm = False
onnx.save(optimize_model(source, model_type=kind, optimization_options=options, opt_level=0).model, result)
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another optimizer.

    Attributes:
        name: what it is called; its name on PyPI, but for `transformers`, which is onnxruntime.transformers.
        arguments: what the interpreter is called with, before the paths of the model and of the result.
        by_kind: whether it is told what kind of network it gets.
    """

    name: str
    arguments: tuple[str, ...]
    by_kind: bool = False


PEERS = (
    Peer("onnxslim", ("-m", "onnxslim")),
    Peer("onnxsim", ("-m", "onnxsim")),
    Peer("onnxoptimizer", ("-c", _ONNXOPTIMIZER)),
    Peer("onnxscript", ("-c", _ONNXSCRIPT)),
    Peer("transformers", ("-c", _TRANSFORMERS), by_kind=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command.

    Attributes:
        seconds: wall time of the whole process.
        output: what it printed on stdout.
        problem: the last line it printed on stderr where it failed, else empty.
    """

    seconds: float
    output: str
    problem: str = ""


def interpreter() -> Path:
    """The Python of the peers' environment, which is made if it is not there.

    Raises:
        NormfuseError: it cannot be made; the message ends with what pip or venv said.
    """
    stamp = hashlib.sha256("\n".join((sys.version, *REQUIREMENTS)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"peers-{stamp}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if complete.is_file():
        return python
    print(f"installing the peers into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        (sys.executable, "-m", "venv", str(folder)),
        (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS),
    ):
        done = run(command, INSTALL_SECONDS)
        if done.problem:
            raise NormfuseError(f"cannot install the peers into {folder}: {done.problem}")
    complete.touch()
    return python


def optimize(peer: Peer, source: Path, result: Path, kind: str = "bert") -> Outcome:
    """Lets a peer optimize a model.

    Args:
        peer: the optimizer.
        source: the model.
        result: where it is to write; removed beforehand. A peer that writes nothing has failed.
        kind: the `model_type` of onnxruntime.transformers, whose own default it is.

    Raises:
        NormfuseError: the peers cannot be installed.
    """
    result.unlink(missing_ok=True)
    done = run((str(interpreter()), *peer.arguments, str(source), str(result), *([kind] if peer.by_kind else [])))
    if not done.problem and not result.is_file():
        return Outcome(done.seconds, done.output, "wrote nothing")
    return done


def run(command: Sequence[str], timeout: float = RUN_SECONDS) -> Outcome:
    """Runs a command to its end, or until `timeout` seconds have passed."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(timeout, "", f"not done after {timeout:.0f} s")
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Outcome(seconds, done.stdout)
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return Outcome(seconds, done.stdout, lines[-1].strip() if lines else f"exit status {done.returncode}")
