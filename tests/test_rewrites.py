"""Golden files: each shows a model before and after, and what was said about it.

A file in `rewrites/` holds four sections under `== title ==` lines: `weights`, one `name: shape` a line, where a shape
may be `norm C` (the four parameters of a BatchNormalization), `positive C`, `number x`, `integers …`; `before`, the
graph as ONNX text; `after`, the graph that comes out, its weights by shape; `report`, the changes and the refusals.

`NORMFUSE_REGENERATE=1 pytest tests/test_rewrites.py` writes the last two sections anew: read the diff.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from normfuse.pipeline import Result
from tests.parity import batch_norm, build, fold

FILES = sorted(Path(__file__).with_name("rewrites").glob("*.onnxtxt"))
REGENERATES = bool(os.environ.get("NORMFUSE_REGENERATE"))


def sections(text: str) -> dict[str, str]:
    """The sections of a file by title; what stands above the first one says what the file shows."""
    parts = re.split(r"^== (\w+) ==\n", text, flags=re.MULTILINE)
    return {"title": parts[0].strip()} | {
        title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def weights(lines: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines.splitlines():
        name, _, content = line.partition(": ")
        kind, *numbers = content.split()
        match kind:
            case "norm":
                found |= batch_norm(name, int(numbers[0]))
            case "positive":
                found[name] = np.linspace(0.5, 2, int(numbers[0]), dtype=np.float32).reshape(-1, 1, 1)
            case "number":
                found[name] = np.array(float(numbers[0]), np.float32)
            case "integers":
                found[name] = np.array([int(number) for number in numbers], np.int64)
            case _:
                found[name] = tuple(map(int, content.split()))
    return found


def render(model: onnx.ModelProto) -> str:
    """The graph as ONNX text, followed by the shapes of its weights."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:], graph.value_info[:]
    kinds = {
        tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in model.graph.initializer
    }
    shapes = [f"# {tensor.name}: {kinds[tensor.name]}{list(tensor.dims)}" for tensor in model.graph.initializer]
    lines = [line.rstrip() for line in onnx.printer.to_text(graph).strip().splitlines()]
    return "\n".join([*lines, *sorted(shapes)])


def told(result: Result) -> str:
    """The changes and the refusals, one a line."""
    lines = [
        f"{change.rule}: {', '.join(change.nodes)} -> {', '.join(change.into) or 'nothing'}: {change.detail}"
        for change in result.report.changes
    ]
    lines += [f"refused {item.rule}: {item.node}: {item.reason}" for item in result.report.refusals]
    return "\n".join(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_rewrite_is_as_it_was(path: Path) -> None:
    parts = sections(path.read_text())
    result = fold(build(parts["before"], **weights(parts["weights"])))
    parts["after"], parts["report"] = render(result.model), told(result)
    text = parts.pop("title") + "\n" + "".join(f"\n== {title} ==\n{body}\n" for title, body in parts.items())
    if REGENERATES:
        path.write_text(text)
    difference = "\n".join(
        difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), path.name, "now", n=2)
    )
    assert not difference, f"\n{difference}"


def test_there_are_rewrites() -> None:
    assert len(FILES) >= 10
