"""A torch module in float64: the truth that modules and what is exported of them are judged by.

    y64 = the module on the CPU, every float that it holds, is given or makes in float64

It is not enough to call `.double()`: a module that casts to float32, such as an RMSNorm that computes its statistics
there whatever it is given, would give a truth as inexact as what it is to judge. So in `Wide` no operator of torch
makes a narrower float, as `normfuse.oracle` widens the Casts of an ONNX model.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from normfuse.calls import Array, Call, outputs_of, to_tensor
from normfuse.errors import NormfuseError
from normfuse.modules import in_one_line, interpreted, same_buffers, titled
from normfuse.oracle import OracleError


class Wide:
    """A copy of a module in float64, on the CPU."""

    def __init__(self, module: Any, call: Call, outputs: Sequence[str], *, widens: bool = True) -> None:
        """Takes a copy whose parameters and buffers are float64 by now.

        Args:
            module: the copy.
            call: how it is called.
            outputs: names of the outputs.
            widens: whether no operator may make a narrower float.
        """
        self._module, self._call, self._outputs = module, call, outputs
        self._widens = widens

    def run(
        self, inputs: Mapping[str, Array], names: Collection[str] | None = None, *, deadline: float | None = None
    ) -> dict[str, Array]:
        """y64.

        Raises:
            OracleError: torch failed, or the deadline has passed.
        """
        tensors = {name: _widened(to_tensor(inputs[name])) for name in self._call.names}
        try:
            with interpreted(), same_buffers(self._module), _widening(deadline, self._widens):
                args, kwargs = self._call.arguments(tensors)
                leaves = outputs_of(self._module(*args, **kwargs))
        except (NormfuseError, OracleError):
            raise
        except Exception as error:
            raise OracleError(f"the torch module does not run in float64: {in_one_line(error)}") from error
        values = titled(leaves, self._outputs, "the torch module in float64")
        return {name: value for name, value in values.items() if names is None or name in names}


def _widening(deadline: float | None, widens: bool) -> Any:
    """A context that ends at a deadline, in which no operator of torch makes a float narrower than float64."""
    import torch
    from torch.utils import _pytree as tree
    from torch.utils._python_dispatch import TorchDispatchMode

    narrow = (torch.float32, torch.float16, torch.bfloat16)

    def retyped(leaf: Any) -> Any:
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf in narrow else leaf

    def widened(leaf: Any) -> Any:
        return _widened(retyped(leaf))

    class Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.higher_order.cond:
                predicate, then, otherwise, operands = args
                with self:
                    return then(*operands) if predicate else otherwise(*operands)
            if isinstance(func, torch._ops.HigherOrderOperator):
                raise OracleError(f"{func} has no form in float64 here")
            if deadline is not None and time.perf_counter() > deadline:
                raise OracleError(f"out of time at {func}")
            if not widens:
                return func(*args, **(kwargs or {}))
            # what is written in place must stay the tensor it is
            law = retyped if func._schema.is_mutable else widened
            args, kwargs = tree.tree_map(law, (args, kwargs or {}))
            result = func(*args, **kwargs)
            made = not any(isinstance(leaf, torch.Tensor) for leaf in tree.tree_leaves((args, kwargs)))
            return tree.tree_map(widened, result) if made else result

    return Widening()  # type: ignore[no-untyped-call]  # nor here


def _widened(leaf: Any) -> Any:
    """A tensor of a narrow float type in float64; anything else as it is."""
    import torch

    narrow = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
    return leaf.to(torch.float64) if narrow else leaf
