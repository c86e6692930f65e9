"""How a torch module is called with arrays that have names, as ONNX models are.

An example of its arguments, nested as the module wants them, is flattened as `torch.export` does it: positional
arguments first, then keyword arguments, dicts in the order of their keys. What is a tensor or an array is an input; all
else (None, numbers, strings) stays as it is. Without an example, inputs go to the parameters of `forward` by name.

torch is imported where it is used: who has a module has done so.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ml_dtypes
import numpy as np

from normfuse.errors import NormfuseError

Array = np.ndarray[Any, Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Call:
    """How a module is called.

    Attributes:
        names: of the inputs.
        arguments: makes positional and keyword arguments from a tensor for each name.
        example: arrays by input name; empty where only names are known.
    """

    names: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], Arguments]
    example: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Given:
    """Arguments of one call, in the order in which `torch.export` makes them inputs.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def to(cls, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Self:
        """Arguments of a module: no tensor stands in two places, for it would be one input; keywords are in order."""
        import torch
        from torch.utils import _pytree as tree

        order = list(parameters_of(module))
        named = sorted(kwargs.items(), key=lambda row: order.index(row[0]) if row[0] in order else len(order))
        seen: set[int] = set()

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if id(leaf) in seen:
                return leaf.detach().clone()
            seen.add(id(leaf))
            return leaf

        positional, keywords = tree.tree_map(own, (args, dict(named)))
        return cls(positional, keywords)


def constants_of(module: Any, given: Given) -> str:
    """The numbers, texts and truth values among arguments, which an export writes into its file; empty without any."""
    from torch.utils import _pytree as tree

    rows = tree.tree_flatten_with_path((given.args, dict(given.kwargs)))[0]
    named = [f"{_name(module, path)} = {leaf!r}" for path, leaf in rows if isinstance(leaf, bool | int | float | str)]
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    return ", ".join(named[:8]) + more


def called_by_names(module: Any, names: Sequence[str]) -> Call:
    """Inputs go to the parameters of `forward` of the same names; where one has none, all go by their places.

    Args:
        module: the module.
        names: of the inputs.

    Raises:
        NormfuseError: it cannot be called with so many.
    """
    parameters = parameters_of(module)
    by_name = all(name in parameters and parameters[name].kind in _KEYWORDS for name in names)

    def arguments(tensors: Mapping[str, Any]) -> Arguments:
        return ((), dict(tensors)) if by_name else (tuple(tensors[name] for name in names), {})

    args, kwargs = arguments(dict.fromkeys(names))
    try:
        inspect.Signature(list(parameters.values())).bind(*args, **kwargs)
    except TypeError as error:
        raise NormfuseError(
            f"the torch module {type(module).__name__} cannot be called with {', '.join(names) or 'no inputs'}: "
            f"{error}; give inputs=(...), as for torch.onnx.export"
        ) from None
    return Call(tuple(names), arguments, {})


def called_like(module: Any, inputs: Any, names: Sequence[str] | None) -> Call:
    """Inputs go where the arrays of an example stand.

    Args:
        module: the module.
        inputs: a tuple of positional or a dict of keyword arguments, or the only argument; or both as `Given`, whose
            arrays have the names in their order, whatever those are.
        names: of the inputs of the ONNX model on the other side; the module's own where there is none.

    Raises:
        NormfuseError: the example has not an array for each name.
    """
    from torch.utils import _pytree as tree

    example: Arguments = (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
    if isinstance(inputs, Mapping):
        example = ((), dict(inputs))
    if isinstance(inputs, Given):
        example = (inputs.args, dict(inputs.kwargs))
    paths, spec = tree.tree_flatten_with_path(example)
    leaves = [leaf for _, leaf in paths]
    places = [place for place, leaf in enumerate(leaves) if is_array(leaf)]
    own = tuple(_name(module, paths[place][0]) for place in places)
    by_place = isinstance(inputs, Given)
    order = own if names is None or (set(names) == set(own) and not by_place) else tuple(names)
    if len(order) != len(own):
        raise NormfuseError(
            f"inputs hold {len(own)} arrays ({', '.join(own)}), but the model takes {len(order)} "
            f"({', '.join(order)}); give one for each"
        )
    moved = [name for name, mine in zip(order, own, strict=True) if name != mine and name in own]
    if moved and not by_place:
        raise NormfuseError(
            f"inputs hold {', '.join(own)}, but the model takes {', '.join(order)}: {moved[0]!r} stands in another "
            "place; give them in the order of the model"
        )

    def arguments(tensors: Mapping[str, Any]) -> Arguments:
        filled = list(leaves)
        for place, name in zip(places, order, strict=True):
            filled[place] = tensors[name]
        args, kwargs = tree.tree_unflatten(filled, spec)
        return tuple(args), kwargs

    arrays = {name: to_array(leaves[place]) for place, name in zip(places, order, strict=True)}
    return Call(order, arguments, arrays)


def outputs_of(result: Any) -> dict[str, Array]:
    """The tensors in what a module gives, in the order in which `torch.onnx` makes them outputs; None is none.

    Raises:
        NormfuseError: something else is among them.
    """
    found: dict[str, Array] = {}
    for name, leaf in leaves_of(result).items():
        if not is_number(leaf):
            raise NormfuseError(f"output {name!r} of the torch module is a {type(leaf).__name__}, no tensor")
        found[name] = to_array(leaf)
    return found


def leaves_of(result: Any) -> dict[str, Any]:
    """What a module gives by name, in the order in which `torch.onnx` makes outputs of it; None is none."""
    from torch.utils import _pytree as tree

    found: dict[str, Any] = {}
    for path, leaf in tree.tree_flatten_with_path(result)[0]:
        if leaf is not None:
            name = "_".join(str(_key(part)) for part in path)
            found[name if name and not name[0].isdigit() else f"output_{name}".rstrip("_")] = leaf
    return found


def is_number(leaf: object) -> bool:
    """Whether something is a tensor, an array or a number."""
    return is_array(leaf) or isinstance(leaf, bool | int | float)


def is_array(leaf: object) -> bool:
    """Whether something is a tensor or an array."""
    import torch

    return isinstance(leaf, torch.Tensor | np.ndarray | np.generic)


def to_tensor(array: Array) -> Any:
    """A tensor of its own: a module may write into what it is given."""
    import torch

    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(leaf: Any) -> Array:
    """A tensor, array or number as an array of its own."""
    import torch

    if not isinstance(leaf, torch.Tensor):
        return np.array(leaf)
    leaf = leaf.detach().cpu().resolve_conj().resolve_neg()
    if leaf.dtype == torch.bfloat16:
        return np.array(leaf.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(leaf.numpy())


def parameters_of(module: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of `forward`; of a compiled one nothing is known but that it takes arguments."""
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {"args": inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)}


def _name(module: Any, path: Sequence[Any]) -> str:
    """What an array of an example is called: its parameter, and its place in that."""
    kind, first, *rest = (_key(part) for part in path)
    if kind == 0:
        places = [one.name for one in parameters_of(module).values() if one.kind in _PLACED]
        first = places[first] if first < len(places) else f"args_{first - len(places)}"
    return "_".join(map(str, (first, *rest)))


def _key(part: Any) -> Any:
    """What an entry of a path says: a key, the name of a field, or a place."""
    return next(getattr(part, kind) for kind in ("key", "name", "idx") if hasattr(part, kind))
