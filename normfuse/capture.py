"""A torch module as an ONNX model whose normalizations are one node each: torch.onnx's dynamo exporter, and our table.

    torch.export → decompositions, but for what `normfuse.translations` keeps → ONNX → tidied → settled

Of the optimizer that torch.onnx runs only what computes shapes and moves elements is used (`SHAPES`). The rest is left
out, for it changes what a model computes: it takes an ε of up to 1e-8 for nothing and drops it, and it folds
BatchNormalization in float32.

This module imports torch and onnxscript.
"""

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules
from torch.nn.utils import parametrize

from normfuse import attention
from normfuse.capture_errors import explained
from normfuse.capture_shapes import simplify_reshapes
from normfuse.errors import ExportError, NormfuseError
from normfuse.functions import DOMAIN, settle
from normfuse.guards import Guards
from normfuse.kernels import RANDOM
from normfuse.modules import inference
from normfuse.translations import TRANSLATIONS

OPSETS = range(18, 24)
"""The opsets that torch.onnx writes by itself."""

DEFAULT_OPSET = 20

SHAPES = (
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    *rules.expand_before_binary_op_rules,
)
"""Rules of onnxscript that keep every number."""


def check_opset(opset: int | None) -> None:
    """Checks that a module can be exported in an opset.

    Raises:
        NormfuseError: torch.onnx does not write it, nor can it be raised to.
    """
    last = max(OPSETS[-1], onnx.defs.onnx_opset_version())
    if opset is not None and not OPSETS[0] <= opset <= last:
        raise NormfuseError(f"torch.onnx writes opsets {OPSETS[0]} and above, here up to {last}, not {opset}")


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    translations: Mapping[Any, Callable[..., Any]] | None = None,
) -> ir.Model:
    """Exports a module as it is, in the mode that it is in.

    Args:
        module: what to export.
        args: positional arguments for one call.
        kwargs: keyword arguments for it.
        opset: the opset to write, one of `OPSETS`.
        dynamic_shapes: as torch.export takes them, with names of dimensions as well.
        input_names: names for the inputs of the graph.
        output_names: names for its outputs.
        translations: rows that go before ours, by operator of torch.

    Returns:
        the model, one node for each normalization: an operator where the opset has it, else a call of a function.

    Raises:
        ExportError: torch cannot export it.
    """
    return captured_with_guards(
        module,
        args,
        kwargs,
        opset=opset,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        translations=translations,
    )[0]


def captured_with_guards(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    translations: Mapping[Any, Callable[..., Any]] | None = None,
) -> tuple[ir.Model, Guards]:
    """The same as `capture`, and what torch took for granted of the sizes of dynamic axes."""
    closed = (*args, {}) if args and not kwargs and isinstance(args[-1], dict) else args  # else it is taken for kwargs
    try:
        # with gradients torch may take another kernel for attention when it traces again, and fail on its layout
        with quiet(), inference(), _weights_at_once(module):
            program = torch.onnx.export(
                module,
                closed,
                kwargs=dict(kwargs),
                input_names=list(input_names) or None,
                output_names=list(output_names) or None,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table={
                    **TRANSLATIONS,
                    attention.OPERATOR: attention.attention(opset),
                    **(translations or {}),
                },
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            if program is None:
                raise ExportError(f"torch.onnx.export gave nothing for {type(module).__name__}; upgrade torch")
            model: ir.Model = program.model
            guards = Guards((), ())
            if dynamic_shapes is not None and program.exported_program is not None:
                guards = Guards.of(program.exported_program, module, args, kwargs, dynamic_shapes)
            tidy(model)
    except ExportError:
        raise
    except Exception as error:  # torch raises whatever the module's own code does, too
        raise explained(error, module) from error
    if model.opset_imports.get("") != opset:
        raise ExportError(
            f"torch.onnx wrote opset {model.opset_imports.get('')} for {type(module).__name__}, not {opset}; "
            "ask for that one"
        )
    settle(model)
    return model, guards


def tidy(model: ir.Model) -> None:
    """Evaluates what depends on constants and shapes alone, and takes out what only moves elements there and back."""
    ir.passes.Sequential(passes.InlinePass(criteria=lambda function: function.domain != DOMAIN))(model)
    for _ in range(2):
        onnxscript.optimizer.fold_constants(model)
        attention.drop_choices(model)
        simplify_reshapes(model)
        ir.passes.Sequential(rewriter.RewritePass(SHAPES), passes.RemoveUnusedNodesPass())(model)
    ir.passes.Sequential(
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # its __init__ has no annotations
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        # that pass merges draws of chance, each of which is its own
        *(
            []
            if any(_is_random(node) for node in model.graph.all_nodes())
            else [passes.CommonSubexpressionEliminationPass()]
        ),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _is_random(node: ir.Node) -> bool:
    return node.op_type in RANDOM or node.op_type == "Dropout"


@contextmanager
def in_mode(module: torch.nn.Module, training: bool) -> Iterator[None]:
    """Puts a module into eval mode, unless it is to stay as it is; afterwards each part is in the mode it was in."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        if not training:
            for part, _ in flags:
                part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def _weights_at_once(module: torch.nn.Module) -> Iterator[None]:
    """Has parametrized weights (weight norm, spectral norm, orthogonal ones) evaluated by torch, before tracing."""
    with parametrize.cached():
        with torch.no_grad():
            for part in module.modules():
                if parametrize.is_parametrized(part) and not part.training:
                    for name in part.parametrizations:  # type: ignore[union-attr]  # that is what it has
                        getattr(part, name)
        yield


class _Elsewhere(io.TextIOBase):
    """A stream that only other threads write to, such as the one that shows progress."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from warning about, logging and printing what it does, and what fails: that is raised as well."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.ERROR))
    try:
        with warnings.catch_warnings(), redirect_stderr(_Elsewhere(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
