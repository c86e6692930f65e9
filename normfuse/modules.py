"""torch modules in a verification: as they are, and in float64.

    y = a copy of the module, on its own device, in its own types
    y64 = a copy of it on the CPU, parameters and buffers in float64

Nothing is run but deep copies, so the module stays as it is: its training flags, hooks, device, types and buffers. A
module in training mode is judged as it computes in eval mode, which is what exporters write; or, where that is asked
for, in the mode that it is in, each time from the buffers that it came with. A note says which. What depends on chance
cannot be proved in any mode.

In the float64 copy no operator may make a narrower float (`normfuse.wide`).
"""

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx_ir as ir

from normfuse.calls import Array, Call, called_by_names, called_like, outputs_of, to_array, to_tensor
from normfuse.errors import NormfuseError, ParityError, TargetError
from normfuse.foreign import Foreign, signature
from normfuse.oracle import OracleError
from normfuse.probes import move

if TYPE_CHECKING:
    from normfuse.wide import Wide

UNLIKE = 1e-3
"""Two runs on the same inputs that are further apart than this, relative, make a result random."""

_FLOATS = {
    "torch.bfloat16": ir.DataType.BFLOAT16,
    "torch.float16": ir.DataType.FLOAT16,
    "torch.float32": ir.DataType.FLOAT,
    "torch.float64": ir.DataType.DOUBLE,
}


def is_module(source: object) -> bool:
    """Whether something is a `torch.nn.Module`; where torch is not imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


class TorchModule(Foreign):
    """A torch module that takes part in a verification."""

    def __init__(
        self,
        module: Any,
        call: Call,
        like: ir.Model | None = None,
        outputs: Sequence[str] = (),
        *,
        training: bool = False,
    ) -> None:
        """Declares what a module takes and gives.

        Args:
            module: a `torch.nn.Module`.
            call: how it is called.
            like: an ONNX model with the same inputs and outputs; else the example of the call tells them.
            outputs: names of the outputs where there is no such model.
            training: whether parts that are in training mode are judged so.

        Raises:
            NormfuseError: it cannot be copied.
        """
        self._module, self._call = copied(module), call
        modes = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
        self._restores = training
        if not training:
            self._module.eval()
        self._ran: Ran | None = None
        if like is not None:
            inputs, declared = signature(like)
        else:
            rows = call.example.items()
            inputs = [(name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)) for name, array in rows]
            declared = [(name, None, None) for name in outputs]
        tensors = (*module.parameters(), *module.buffers())
        kinds = {_FLOATS[str(tensor.dtype)] for tensor in tensors if str(tensor.dtype) in _FLOATS}
        super().__init__(inputs, declared, title=type(module).__name__, kinds=kinds, like=like)
        self.example = call.example
        if modes:
            parts = f"{modes[0]!r}" + (f" and {len(modes) - 1} more" if len(modes) > 1 else "")
            how = f"as it computes in {'that' if training else 'eval'} mode"
            self.notes = (f"the torch module is in training mode ({parts}): judged {how}",)

    def runner(self, name: str) -> "Ran":
        """The module as it is."""
        if self._ran is None:
            outputs = [str(value.name) for value in self.graph.outputs]
            self._ran = Ran(self._module, self._call, outputs, name, restores=self._restores)
        return self._ran

    def truth(self, *, widens: bool = True) -> "Wide":
        """The module in float64.

        Args:
            widens: whether what it casts to a narrower type by itself is float64, too.

        Raises:
            OracleError: it has no float64 form.
        """
        from normfuse.wide import Wide

        try:
            module = copied(self._module).to("cpu").double()
        except Exception as error:
            raise OracleError(f"the torch module has no form in float64: {in_one_line(error)}") from error
        return Wide(module, self._call, [str(value.name) for value in self.graph.outputs], widens=widens)

    def moved(self) -> Self:
        """The same with its weights moved by one unit in the last place."""
        import torch

        rng = np.random.default_rng(2)
        other = copy.copy(self)
        other._module, other._ran = copied(self._module), None
        with torch.no_grad():
            for weight in other._module.parameters():
                if weight.ndim > 1:
                    weight.copy_(to_tensor(move(to_array(weight), rng)))
        return other


def torch_module(
    module: Any, inputs: Any = None, like: ir.Model | None = None, *, training: bool = False
) -> TorchModule:
    """A module ready to take part.

    Args:
        module: a `torch.nn.Module`.
        inputs: what it is called with, as for `torch.onnx.export`: a tensor or array, a tuple of positional or a dict
            of keyword arguments, nested as the module wants them. What is neither tensor nor array stays as it is.
        like: an ONNX model with the same inputs and outputs, from which names, types and shapes are taken.
        training: whether parts that are in training mode are judged so.

    Raises:
        NormfuseError: it cannot be copied, its parameters are not made yet, its inputs are not known, or not those of
            `like`.
    """
    from torch.nn.parameter import is_lazy

    lazy = next((name for name, tensor in module.named_parameters() if is_lazy(tensor)), None)
    if lazy is not None:
        raise NormfuseError(
            f"the torch module {type(module).__name__} has parameters that are not made yet, such as {lazy!r}: each "
            "copy would draw its own; run it once first"
        )
    names = None if like is None else [name for name, _, _ in signature(like)[0]]
    if inputs is not None:
        call = called_like(module, inputs, names)
    elif names is not None:
        call = called_by_names(module, names)
    else:
        raise NormfuseError("nothing says what the torch modules take: give inputs=(...), as for torch.onnx.export")
    if like is not None:
        return TorchModule(module, call, like, training=training)
    first = Ran(copied(module).eval(), call, None, "the torch module")
    first.run(call.example)
    return TorchModule(module, call, None, first.outputs or ())


class Ran:
    """A module in its own mode, on its own device and in its own types.

    Attributes:
        outputs: names of the outputs; until it is run first they may not be known.
    """

    def __init__(
        self, module: Any, call: Call, outputs: Sequence[str] | None, name: str, *, restores: bool = False
    ) -> None:
        """Takes a module that nobody else runs.

        Args:
            module: the module.
            call: how it is called.
            outputs: names of the outputs, where they are known.
            name: what error messages call it.
            restores: whether each run begins with the buffers that it came with.
        """
        self._restores = restores
        self.outputs = outputs
        self._module, self._call, self._name = module, call, name
        self._sure = False

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs it once; the first time twice, to see that it gives the same again.

        Raises:
            TargetError: torch failed.
            ParityError: it has not as many outputs as it should.
            NormfuseError: it gives other results each time.
        """
        values = self._once(inputs)
        if not self._sure:
            again = self._once(inputs)
            for name, value in values.items():
                if not _alike(value, again[name]):
                    raise NormfuseError(
                        f"{self._name}: its output {name!r} is another one each time on the same inputs: it is random "
                        "or keeps a state; nothing can be proved about it"
                    )
            self._sure = True
        return {name: value for name, value in values.items() if names is None or name in names}

    def _once(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        device = next((t.device for t in (*self._module.parameters(), *self._module.buffers())), "cpu")
        try:
            with interpreted(), same_buffers(self._module) if self._restores else nullcontext():
                args, kwargs = self._call.arguments({n: to_tensor(inputs[n]).to(device) for n in self._call.names})
                leaves = outputs_of(self._module(*args, **kwargs))
        except NormfuseError:
            raise
        except Exception as error:
            raise TargetError(f"{self._name}: torch failed to run it: {in_one_line(error)}") from error
        if self.outputs is None:
            self.outputs = list(leaves)
        return titled(leaves, self.outputs, self._name)


def titled(leaves: Mapping[str, Array], outputs: Sequence[str], name: str) -> dict[str, Array]:
    """What a module gave under the names of its outputs.

    Args:
        leaves: the arrays, in order.
        outputs: the names, in order.
        name: what error messages call the module.

    Raises:
        ParityError: there are more or fewer.
    """
    if len(leaves) != len(outputs):
        raise ParityError(
            f"{name} gives {len(leaves)} outputs ({', '.join(leaves)}), not {len(outputs)} ({', '.join(outputs)})"
        )
    return dict(zip(outputs, leaves.values(), strict=True))


def in_one_line(error: BaseException) -> str:
    """What an error of torch says first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _alike(y: Array, other: Array) -> bool:
    if y.shape != other.shape:
        return False
    if y.dtype.kind not in "fV":
        return bool(np.array_equal(y, other))
    wide = np.nan_to_num(y.astype(np.float64)), np.nan_to_num(other.astype(np.float64))
    return bool(np.linalg.norm(wide[0] - wide[1]) <= UNLIKE * np.linalg.norm(wide[0]))


@contextmanager
def inference() -> Iterator[None]:
    """No gradients, and transformer layers of torch by their formula.

    Without gradients torch.nn.MultiheadAttention and TransformerEncoderLayer have a fast path, which gives something
    else where there is padding: NaN for the zeros of the formula, and zeros at padded places. An exporter sees the
    formula.
    """
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def interpreted() -> Iterator[None]:
    """`inference`, and nothing is compiled: torch.cond would be, and cannot be where float64 is watched over."""
    import torch

    with inference(), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def same_buffers(module: Any) -> Iterator[None]:
    """Leaves the buffers of a module as they were, such as the running statistics that training mode moves."""
    from normfuse.module_state import Buffers

    held = Buffers(module)
    try:
        yield
    finally:
        held.restore()


@contextmanager
def _leaves(module: Any) -> Iterator[None]:
    """Cuts off for a while how weights were computed of others, such as by the hooks of an old weight norm.

    torch copies no tensor that remembers it. The copy's own hooks compute its weights anew.
    """
    import torch

    computed = [
        (part, name, tensor)
        for part in module.modules()
        for name, tensor in vars(part).items()
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf
    ]
    try:
        for part, name, tensor in computed:
            vars(part)[name] = tensor.detach()
        yield
    finally:
        for part, name, tensor in computed:
            vars(part)[name] = tensor


def copied(module: Any) -> Any:
    """A deep copy of a module.

    Raises:
        NormfuseError: it cannot be copied.
    """
    try:
        with _leaves(module):
            return copy.deepcopy(module)
    except Exception as error:
        raise NormfuseError(
            f"the torch module {type(module).__name__} cannot be copied, and is not run itself, so that it stays as it "
            f"is: {in_one_line(error)}; export it and give the ONNX model instead"
        ) from error
