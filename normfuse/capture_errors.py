"""What torch could not export, in one line: the module, the operator, and what to try.

torch's own errors are pages; what matters stands in the first of them, in the call stack of the module and in the node
that was being translated. This module imports torch.
"""

import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch

from normfuse.errors import ExportError

ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"complex-valued",
        "torch.onnx cannot write it for complex numbers: compute with their real and imaginary parts",
    ),
    (
        r"No ONNX function found for|No decompositions registered",
        "torch.onnx has no translation of it: write it with other operators, or give one in translations={…}",
    ),
    (
        r"data-dependent|Data-dependent|GuardOnDataDependent|_local_scalar_dense|aten\.item|aten\.nonzero",
        "what it does depends on the values it is given: use torch.where or torch.cond, or take it out of the module",
    ),
    (
        r"Constraints violated|conflicts between user-specified|specialized|not in range|guards generated",
        "it does not work for every size of a dimension in dynamic_shapes: leave that dimension out, or bound it with "
        "torch.export.Dim(name, min=…, max=…)",
    ),
    (
        r"dynamic_shapes|structure of `args`|dynamic shape",
        "dynamic_shapes must be nested like the arguments: {axis: name} for each tensor, None for a static one",
    ),
    (
        r"'(int|float|bool|str|complex)' object has no attribute 'name'",
        "it gives a number or text, which can be no output: return tensors only, such as torch.tensor(…)",
    ),
    (
        r"not a known type|Unsupported input type|register_dataclass",
        "register its class with torch.export.register_dataclass or torch.utils._pytree.register_pytree_node, or use "
        "tuples and dicts of tensors",
    ),
    (
        r"forward\(\)|missing a required|got an unexpected|positional argument|multiple values for argument",
        "the example inputs are not what the module takes: give all arguments of forward",
    ),
    (r"size of what it normalizes over", "leave that axis out of dynamic_shapes"),
)
"""What to try, by what an error says; the first that fits."""

_LONGEST = 240
"""Characters of an error of torch that are shown; whole sentences where there are such."""

_OTHER = "see torch's own error, which this one was raised from"


def explained(error: Exception, module: torch.nn.Module) -> ExportError:
    """The error in one line."""
    chain = list(_chain(error))
    texts = [f"{type(one).__name__}: {one}" for one in chain]
    root = next((text for text in reversed(texts) if _matching(text)), texts[-1])
    path, operator = _place(chain, module)
    where = type(module).__name__ + (f", {path}" if path else "") + (f": {operator}" if operator else "")
    return ExportError(f"cannot export {where}: {_first_line(root)}; {_matching(root) or _OTHER}")


def _matching(text: str) -> str:
    return next((advice for pattern, advice in ADVICE if re.search(pattern, text)), "")


def _first_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if line.strip()]
    if lines[0].endswith(":") and len(lines) > 1:
        lines[0] += f" {lines[1]}"
    text = re.sub(r"\s*(See the stack trace for more information\.|Failure message:.*)$", "", lines[0])
    if len(text) <= _LONGEST:
        return text
    sentence = text.rfind(". ", 0, _LONGEST)
    return text[:sentence] if sentence > 0 else text[:_LONGEST].rpartition(" ")[0] + " …"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _place(chain: list[BaseException], module: torch.nn.Module) -> tuple[str, str]:
    """The path and type of the innermost module that an error was raised in, and the operator of torch."""
    names = {id(part): name for name, part in module.named_modules()}
    for error in reversed(chain):
        for frame in reversed(list(_frames(error.__traceback__))):
            node = frame.get("node")
            if isinstance(node, torch.fx.Node) and node.op == "call_function":
                return _stacked(node), str(node.target)
            part = frame.get("self")
            if isinstance(part, torch.nn.Module) and names.get(id(part)):
                return f"{names[id(part)]} ({type(part).__name__})", ""
    return "", ""


def _stacked(node: torch.fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not stack[-1][0]:
        return ""
    path, kind = stack[-1]
    name: Any = kind if isinstance(kind, str) else kind.__name__
    return f"{path} ({str(name).rpartition('.')[2]})"


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next
