"""Parts of two models between values of the same names, as models of their own with their inputs: `Case`.

before.onnx   recorded values  →  the nodes of the reference  →  one value
after.onnx    the same values  →  the nodes of the candidate  →  the same value
"""

import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from normfuse.errors import NormfuseError
from normfuse.leftovers import folder_beside
from normfuse.model import save
from normfuse.passes.removal import RemoveUnusedPass
from normfuse.printable import printable_lines

Array = np.ndarray[Any, Any]

_RUN = '''"""{title}

{detail}
Ends with the status of the gate: 1 where after.onnx does not compute what before.onnx computes.
"""

import subprocess
import sys
from pathlib import Path

folder = Path(__file__).resolve().parent
models = [str(folder / name) for name in ("before.onnx", "after.onnx")]
options = ["--data", str(folder / "inputs.npz"), *{options!r}]
sys.exit(subprocess.run([sys.executable, "-m", "normfuse", "verify", *models, *options], check=False).returncode)
'''


@dataclass(frozen=True, slots=True)
class Case:
    """Two small models that should compute the same, and inputs on which they do not.

    Attributes:
        before: the part of the reference.
        after: the part of the candidate.
        inputs: arrays by input name.
        output: the value that diverges.
        whole: whether nothing could be cut off.
    """

    before: ir.Model
    after: ir.Model
    inputs: dict[str, Array]
    output: str
    whole: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """The nodes of both main graphs."""
        return len(self.before.graph), len(self.after.graph)


def cut(
    model: ir.Model,
    outputs: Sequence[str],
    fed: Mapping[str, Array],
    frozen: Mapping[str, Array],
    expected: Mapping[str, Array] | None = None,
    *,
    fixed: bool = True,
) -> ir.Model:
    """The part of a model between some values and others; the model is not changed.

    Args:
        model: the model.
        outputs: the values of the main graph that the part computes.
        fed: values that become its inputs, with what they are in one run. Those that the model does not have become
            inputs that nothing reads.
        frozen: values that become constants.
        expected: what the outputs are in that run, where that is known.
        fixed: whether the inputs have the shapes of that run, or any.
    """
    copy = model.clone()
    graph = copy.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    values |= {str(value.name): value for value in graph.inputs}
    graph.outputs.clear()
    graph.inputs.clear()
    for node in graph:
        for value in node.outputs:
            value.shape = None  # sizes may be those of another batch
    for name, array in [*fed.items(), *frozen.items()]:
        shape = ir.Shape(array.shape if fixed or name in frozen else [None] * array.ndim)
        new = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=shape)
        old = values.get(name)
        if old is not None:
            old.name = f"{name}.computed"
            ir.convenience.replace_all_uses_with(old, new)
        if name in frozen:
            new.const_value = ir.tensor(array, name=name)
            graph.initializers.add(new)
        else:
            graph.inputs.append(new)
    for name in outputs:
        result = values[name]
        if expected is not None and name in expected:
            result.type = ir.TensorType(ir.DataType.from_numpy(expected[name].dtype))
            result.shape = ir.Shape(expected[name].shape)
        graph.outputs.append(result)
    RemoveUnusedPass()(copy)
    removing: ir.passes.PassBase = RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]  # as onnx_ir has it
    removing(copy)
    return copy


def check_folder(folder: str | Path) -> Path:
    """The folder as a place to write a case to.

    Raises:
        NormfuseError: there is something already, or no folder to make it in.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NormfuseError(f"{path} is a file; name a folder for the case")
    if path.is_dir() and any(path.iterdir()):
        raise NormfuseError(f"folder {path} is not empty; name another one for the case")
    if not path.absolute().parent.is_dir():
        raise NormfuseError(f"there is no folder {path.absolute().parent} to write the case to; make it first")
    return path


def write(case: Case, folder: str | Path, title: str, detail: str = "", provider: str = "cpu") -> Path:
    """Writes a case as a folder with both models, the inputs, and run.py, which shows that they differ.

    The folder appears whole or not at all.

    Args:
        case: what to write.
        folder: a new or an empty folder.
        title: what the case shows, in one line.
        detail: more about it.
        provider: where it fails.

    Raises:
        NormfuseError: there is something already, or it cannot be written.
    """
    path = Path(os.path.realpath(check_folder(folder)))  # the end of a link, which stays
    try:
        with folder_beside(str(path)) as beside:
            made = Path(beside) / path.name
            made.mkdir()
            save(case.before, made / "before.onnx")
            save(case.after, made / "after.onnx")
            _write_inputs(case.inputs, made / "inputs.npz")
            options = [] if provider == "cpu" else ["--provider", provider]
            plain = {"title": _docstring(title), "detail": f"{_docstring(detail)}\n" if detail else ""}
            (made / "run.py").write_text(_RUN.format(**plain, options=options), encoding="utf-8")
            if path.is_dir():
                made.chmod(stat.S_IMODE(path.stat().st_mode))
                path.rmdir()
            made.rename(path)
    except OSError as error:
        raise NormfuseError(
            f"cannot write the case to {path}: {error.strerror or error}; name another folder"
        ) from error
    return path


def _docstring(text: str) -> str:
    return printable_lines(text).replace("\\", "\\\\").replace('"', "'")


def _write_inputs(inputs: Mapping[str, Array], path: Path) -> None:
    """Writes arrays as numpy.savez does, under any name; types that numpy does not know as float32."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in inputs.items():
            plain = array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
            plain = plain.astype(np.str_) if plain.dtype.kind == "O" else plain
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
