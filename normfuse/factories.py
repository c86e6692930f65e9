"""What `normfuse export` is given by name: a module from `package.module:factory`, its weights and example inputs.

The factory is called without arguments, or is a module already. Example inputs are given on the command line, or are
attributes of the module: `example_inputs`, a tuple of tensors (or a dict of keyword arguments), and `dynamic_shapes`,
as `normfuse.export` takes them. torch is imported where it is needed.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from normfuse.errors import ExportError, NormfuseError

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class Example:
    """An example input.

    Attributes:
        name: the parameter of the module's forward.
        sizes: its shape.
        dims: names of the axes that are dynamic.
        dtype: the name of its dtype.
    """

    name: str
    sizes: tuple[int, ...]
    dims: Mapping[int, str]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `NAME:DIMS[:DTYPE]`, such as `x:batch=2,3,224,224:float16`.

        Raises:
            ValueError: it is something else.
        """
        name, _, rest = text.partition(":")
        shape, _, dtype = rest.partition(":")
        sizes, dims = [], {}
        for axis, part in enumerate(shape.split(",")):
            title, has, size = part.strip().rpartition("=")
            if not size.isdecimal() or int(size) < 1 or (has and not title.isidentifier()):
                raise ValueError(
                    f"{text!r} is no example input; write a name, its sizes, and its dtype if that is not float32, "
                    "such as x:batch=2,3,224,224 or ids:1,length=16:int64"
                )
            sizes.append(int(size))
            if has:
                dims[axis] = title
        if not name.isidentifier():
            raise ValueError(f"{text!r} is no example input: {name!r} is no name of a parameter")
        if (dtype or "float32") not in _DTYPES:
            raise ValueError(f"{text!r} is no example input: choose a dtype from {', '.join(_DTYPES)}")
        return cls(name, tuple(sizes), dims, dtype or "float32")

    def tensor(self, seed: int) -> Any:
        """A tensor like this: N(0, 1), or of integers and booleans zeros and ones."""
        import torch

        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(seed)
        if dtype.is_floating_point:
            return torch.randn(self.sizes, generator=generator).to(dtype)
        return torch.randint(0, 2, self.sizes, generator=generator).to(dtype)


@dataclass(frozen=True, slots=True)
class Made:
    """A module that is ready to be exported.

    Attributes:
        module: the module.
        args: positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: which axes are dynamic; None where none is.
        training: what to say about parts that are in training mode, or nothing.
    """

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    training: str = ""


def make(
    factory: str,
    weights: str | None = None,
    examples: Sequence[Example] = (),
    static: bool = False,
    limits: Mapping[str, tuple[int, int | None]] | None = None,
) -> Made:
    """Makes a module by the name of its factory.

    Args:
        factory: `package.module:factory`, where the factory may stand in a class or object: `a.b:C.d`.
        weights: a file of weights to load.
        examples: its inputs; else the module must say.
        static: whether no axis is to be dynamic.
        limits: the least and the most that a dynamic dimension is to be, by its name.

    Raises:
        ExportError: torch is missing, or the factory fails or makes no module.
        NormfuseError: there is no such factory, there are no example inputs, or some that forward has no parameter for,
            or the weights do not fit.
    """
    from normfuse.exporting import require_torch

    torch = require_torch()
    made = _named(factory)
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise NormfuseError(f"{factory} is a {type(made).__name__}, neither a torch module nor what makes one")
        try:
            made = made()
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise ExportError(f"{factory}() failed: {what}; it is called without arguments") from error
    if not isinstance(made, torch.nn.Module):
        raise ExportError(f"{factory}() gave a {type(made).__name__}, no torch module")
    if weights is not None:
        load_weights(made, weights)
    from normfuse.exporting import reminder

    training = reminder(made)
    if examples:
        _check_names(made, examples)
        kwargs = {one.name: one.tensor(index) for index, one in enumerate(examples)}
        dims = {one.name: dict(one.dims) or None for one in examples}
        dynamic = dims if any(dims.values()) and not static else None
        return Made(made, (), kwargs, limited(dynamic, limits or {}), training)
    given = getattr(made, "example_inputs", None)
    if given is None:
        raise NormfuseError(
            f"nothing says what {factory} takes: give --input NAME:DIMS, such as --input x:batch=1,3,224,224, or set "
            "its attribute example_inputs to a tuple of tensors"
        )
    given = given() if callable(given) else given
    dynamic = limited(None if static else getattr(made, "dynamic_shapes", None), limits or {})
    if isinstance(given, Mapping):
        return Made(made, (), dict(given), dynamic, training)
    return Made(made, tuple(given) if isinstance(given, tuple | list) else (given,), {}, dynamic, training)


def limited(dynamic_shapes: Any, limits: Mapping[str, tuple[int, int | None]]) -> Any:
    """Dynamic shapes with limits for some of the dimensions that they name.

    Raises:
        NormfuseError: they name none of that name.
    """
    import torch

    dims = {name: torch.export.Dim(name, min=least, max=most) for name, (least, most) in limits.items()}
    named: set[str] = set()

    def filled(spec: Any) -> Any:
        if isinstance(spec, Mapping):
            return {key: filled(one) for key, one in spec.items()}
        if isinstance(spec, tuple | list):
            return type(spec)(filled(one) for one in spec)
        name = spec if isinstance(spec, str) else getattr(spec, "__name__", None)
        if name is None:
            return spec
        named.add(name)
        return dims.get(name, spec)

    result = filled(dynamic_shapes)
    for name in dims:
        if name not in named:
            raise NormfuseError(
                f"there is no dynamic dimension {name!r} to limit; "
                + (f"there are {', '.join(sorted(named))}" if named else "name one in --input, as in x:batch=2,3")
            )
    return result


def _check_names(module: Any, examples: Sequence[Example]) -> None:
    """Example inputs are named as the parameters of the module's forward.

    Raises:
        NormfuseError: one is not.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for example in examples:
        if example.name not in known:
            raise NormfuseError(
                f"forward of {type(module).__name__} has no parameter {example.name!r}; it takes "
                f"{', '.join(known) or 'none by name'}"
            )


def _named(factory: str) -> Any:
    """What a name stands for; modules are looked for in the current folder, too."""
    path, has, attribute = factory.partition(":")
    if not (has and path and attribute):
        raise NormfuseError(f"{factory!r} is no factory; write package.module:factory, such as models.cnn:resnet18")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise NormfuseError(
                f"there is no module {error.name!r}; run from the folder that holds it, or install it"
            ) from error
        raise ExportError(f"importing {path} failed: {error}; install what it needs") from error
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"importing {path} failed: {what}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            import difflib

            near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; check its name"
            raise NormfuseError(f"{path} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def load_weights(module: Any, path: str) -> None:
    """Loads weights into a module, all of them and no others: from a safetensors file, or a pickled state_dict.

    Of a pickle nothing but tensors is read (`weights_only`). Weights that are tied may stand in the file once, as
    safetensors writes them.

    Raises:
        NormfuseError: the file cannot be read, or its weights are not those of the module.
    """
    state = _state(path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        raise NormfuseError(
            f"{path} does not fit {type(module).__name__}: {lines[1] if len(lines) > 1 else lines[0]}"
        ) from error
    held = module.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in held.items() if name in state}
    missing = [name for name in missing if id(held.get(name)) not in loaded]
    if missing and unexpected and all(name.startswith("module.") for name in state):
        raise NormfuseError(
            f"{path}: its names begin with 'module.', as DistributedDataParallel writes them; save the state_dict of "
            "what it wraps, its attribute module"
        )
    for names, what in ((missing, "has no weight"), (unexpected, "has a weight that the module has not:")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise NormfuseError(f"{path} {what} {names[0]!r}{more}; it is of another {type(module).__name__}")


def _state(path: str) -> Mapping[str, Any]:
    import torch

    if not os.path.isfile(path):
        raise NormfuseError(f"there is no file {path}; check the path")
    try:
        if path.endswith(".safetensors"):
            if importlib.util.find_spec("safetensors") is None:
                raise NormfuseError(f"{path} needs the package safetensors; run: pip install safetensors")
            load_file = importlib.import_module("safetensors.torch").load_file
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except NormfuseError:
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:160]
        if type(error).__name__ == "UnpicklingError":  # torch advises to run what is in it
            first = "it is no file that torch.load reads without running what is in it"
        elif len(first) < 24:  # such as the number of a byte
            first = f"it is no file that torch.load reads ({type(error).__name__})"
        raise NormfuseError(
            f"cannot read weights from {path}: {first}; save them with torch.save(module.state_dict(), path) or as "
            "safetensors"
        ) from error
    inner = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(inner, Mapping):
        raise NormfuseError(f"{path} holds no state_dict; save torch.save(module.state_dict(), path)")
    if not _is_state(inner):
        within = next((key for key, one in inner.items() if isinstance(one, Mapping) and one and _is_state(one)), None)
        hint = "" if within is None else f", but one as its entry {within!r}"
        save = "module.state_dict()" if within is None else f"torch.load(…)[{within!r}]"
        raise NormfuseError(f"{path} holds no state_dict{hint}; save one alone: torch.save({save}, 'weights.pt')")
    return inner


def _is_state(state: Mapping[Any, Any]) -> bool:
    import torch

    return all(isinstance(one, torch.Tensor) for one in state.values())
