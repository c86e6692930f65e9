"""The parts of a torch module compared one by one with what was captured of them: `layer_parity`.

A part's output is the only value that nodes of the part compute and others read. The module is run with a hook on each
such part, in its own types and in float64, so that a part is judged as a whole module is, in the place where it stands.
What LOWER and FOLD made of the model is not looked at: a value may mean something else there, such as its multiple.

This module imports torch.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from normfuse.calls import called_like, to_array, to_tensor
from normfuse.foreign import signature
from normfuse.modules import TorchModule, copied, inference
from normfuse.verification import Parity, verify

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx notes which parts of the module a node belongs to."""


class Tapped(torch.nn.Module):
    """A module that gives the outputs of some of its parts instead of its own."""

    def __init__(self, module: torch.nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        self.module, self.paths = module, tuple(paths)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Runs the module; the tensors that its parts gave, in the order of their paths; None where called twice."""
        seen: dict[str, Any] = {}

        def tap(path: str) -> Callable[..., None]:
            def keep(part: torch.nn.Module, inputs: Any, output: Any) -> None:
                once = path not in seen and isinstance(output, torch.Tensor)
                seen[path] = output.clone() if once else None

            return keep

        hooks = [self.module.get_submodule(path).register_forward_hook(tap(path)) for path in self.paths]
        try:
            self.module(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(seen.get(path) for path in self.paths)


def layer_parity(
    module: torch.nn.Module,
    inputs: Any,
    captured: ir.Model,
    *,
    budget: float = 60.0,
    shapes: Mapping[str, Any] | None = None,
    training: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Parity | None:
    """Judges the parts of a module.

    Args:
        module: the module in the mode in which it was exported.
        inputs: an example of what it takes, as `normfuse.modules.torch_module` takes it.
        captured: what torch.onnx made of it.
        budget: seconds that float64 may take.
        shapes: shapes by input name, or sizes by the name of a dynamic dimension.
        training: whether that is training mode.
        progress: called with what is being done.

    Returns:
        a parity whose outputs are called by the paths of the parts; None where no part has one output of its own.
    """
    module = copied(module)
    found = part_outputs(captured, [path for path, _ in module.named_modules() if path])
    call = called_like(module, inputs, [name for name, _, _ in signature(captured)[0]])
    args, kwargs = call.arguments({name: to_tensor(array) for name, array in call.example.items()})
    with inference():
        given = dict(zip(found, Tapped(module, list(found))(*args, **kwargs), strict=True))
    found = {path: name for path, name in found.items() if _is_alike(given[path], captured, name)}
    if not found:
        return None
    candidate = _with_parts(captured, found)
    tapped = Tapped(module, list(found))
    reference = TorchModule(tapped if training else tapped.eval(), call, candidate, training=training)
    example = [call.example]
    return verify(reference, candidate, data=example, budget=budget, stand_in=True, shapes=shapes, progress=progress)


def part_outputs(captured: ir.Model, paths: Sequence[str]) -> dict[str, str]:
    """The value that each part gives, by its path; parts that give several, or that are called twice, are left out."""
    inside: dict[ir.Node, frozenset[str]] = {}
    for node in captured.graph:
        text = node.metadata_props.get(_SCOPES)
        inside[node] = frozenset(ast.literal_eval(text)) if text else frozenset()
    given: dict[str, list[str]] = {path: [] for path in paths}
    for node, scopes in inside.items():
        for value in node.outputs:
            for path in scopes & given.keys():
                readers = [use.node for use in value.uses()]
                if value.is_graph_output() or any(path not in inside.get(one, ()) for one in readers):
                    given[path].append(str(value.name))
    return {path: names[0] for path, names in given.items() if len(names) == 1}


def _with_parts(captured: ir.Model, found: Mapping[str, str]) -> ir.Model:
    """A copy that gives the outputs of parts, under their paths."""
    model = captured.clone()
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    graph = model.graph
    graph.outputs.clear()
    for path, name in found.items():
        value = values[name]
        if value in graph.outputs:  # a part that only passes on what another one gives
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            value = copy.outputs[0]
        graph.outputs.append(value)
        value.name = path
    return model


def _is_alike(output: Any, captured: ir.Model, name: str) -> bool:
    """Whether what a part gave is a tensor of the type and rank that the value has."""
    value = next(value for node in captured.graph for value in node.outputs if value.name == name)
    if not isinstance(output, torch.Tensor) or value.shape is None or value.dtype is None:
        return False
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    same = len(sizes) == output.dim() and all(
        size in (None, own) for size, own in zip(sizes, output.shape, strict=True)
    )
    return same and ir.DataType.from_numpy(to_array(output).dtype) == value.dtype
