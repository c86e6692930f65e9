"""Batches for a torch module, whatever they come as, to be gone through anew for each pass: `module_batches`.

| given | a batch is |
|---|---|
| files, folders and URLs, as `normfuse.batches` reads them | keyword arguments: arrays by the names of `forward`'s \
parameters; a .npy file is for the only parameter that has no default |
| a tensor, an array or a mapping | that, the only one |
| a `CalibrationDataReader` of ONNX Runtime | what its `get_next` gives, until that is None |
| any other iterable | what it gives: a tensor or array, a list that begins with one, a mapping of keyword arguments |

What comes only once is written to a temporary folder, and read from there the next time. This module is imported where
torch is imported already.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as tree

from normfuse.batch_inputs import Batch, Header
from normfuse.calls import is_array, parameters_of
from normfuse.errors import NormfuseError
from normfuse.replay import Spool, opened, paths_of

_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def module_batches(source: Any, module: nn.Module) -> tuple[Iterable[Any], "Parameters"]:
    """Batches for a module, and what it takes, which knows what was left out once they have been read.

    Raises:
        NormfuseError: they cannot be read, or the module does not take them.
    """
    parameters = Parameters(module)
    if (paths := paths_of(source)) is not None:
        return _InFiles(paths, parameters), parameters
    iterable, comes_once = opened(source)
    if comes_once:
        return Spool(iter(iterable), ".pt", _as_tensors, torch.save, partial(torch.load, weights_only=True)), parameters
    return iterable, parameters


class Parameters:
    """What the forward pass of a module takes by name.

    Attributes:
        names: of what it must be given.
        ignored: names of arrays that it does not take, as far as batches have been seen.
        twice: files that are given more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = parameters_of(module)
        self._title = type(module).__name__
        self._takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        self._known = {name for name, one in parameters.items() if one.kind in _KEYWORDS}
        self.names = [name for name in parameters if name in self._known and parameters[name].default is _NONE]
        self.ignored: dict[str, None] = {}
        self.twice: tuple[str, ...] = ()

    def check(self, headers: Mapping[str, Header], what: str) -> None:
        """Checks that a module can be given arrays, as far as their names tell.

        Raises:
            NormfuseError: one is missing.
        """
        for name in self.names:
            if name not in headers:
                given = ", ".join(headers) or "none"
                raise NormfuseError(f"{what} has no array for the parameter {name!r} of {self._title}, only {given}")
        self.ignored |= dict.fromkeys(name for name in headers if not self.takes(name))

    def fed(self, batch: Any, what: str) -> Batch:
        """The arrays of a file that the module takes.

        Raises:
            NormfuseError: one is missing.
        """
        arrays = {str(name): np.asarray(array) for name, array in batch.items()}
        self.check({name: Header(array.dtype, array.shape) for name, array in arrays.items()}, what)
        return {name: array for name, array in arrays.items() if self.takes(name)}

    def takes(self, name: str) -> bool:
        """Whether a parameter has a name."""
        return self._takes_all or name in self._known


_NONE = inspect.Parameter.empty


class _InFiles:
    def __init__(self, paths: list[str], parameters: Parameters) -> None:
        from normfuse.batch_files import Files

        self._files = Files(paths, parameters)
        parameters.twice = self._files.twice

    def __iter__(self) -> Iterator[Batch]:
        return self._files.read()


def _as_tensors(batch: Any, index: int) -> Any:
    """What a module is given of a batch, with its arrays as tensors of their own.

    Raises:
        NormfuseError: something in it is neither a tensor nor a plain value.
    """
    batch = dict(batch) if isinstance(batch, Mapping) else batch[0] if isinstance(batch, list | tuple) else batch
    leaves, spec = tree.tree_flatten(batch)
    for leaf in leaves:
        if not (is_array(leaf) or leaf is None or isinstance(leaf, bool | int | float | str)):
            raise NormfuseError(
                f"batch {index} holds a {type(leaf).__name__}, and comes only once; give what can be gone through "
                "again, such as a list"
            )
    return tree.tree_unflatten([torch.as_tensor(leaf).clone() if is_array(leaf) else leaf for leaf in leaves], spec)
