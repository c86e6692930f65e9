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
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as tree

from normfuse.batch_inputs import Batch, Header
from normfuse.batches import are_paths, holds_none
from normfuse.calls import is_array, parameters_of
from normfuse.errors import NormfuseError

_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def module_batches(source: Any, module: nn.Module) -> tuple[Iterable[Any], "Parameters"]:
    """Batches for a module, and what it takes, which knows what was left out once they have been read.

    Raises:
        NormfuseError: they cannot be read, or the module does not take them.
    """
    parameters = Parameters(module)
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, Mapping) or is_array(source):
        return [source], parameters
    if are_paths(source):
        return _InFiles([os.fspath(path) for path in source], parameters), parameters
    if callable(getattr(source, "get_next", None)):
        rewind = getattr(source, "rewind", None)
        given = iter(source.get_next, None)
        return _Rewound(source) if callable(rewind) else _Spooled(given), parameters
    try:
        iterator = iter(source)
    except TypeError:
        raise holds_none(source) from None
    return _Spooled(iterator) if iterator is source else source, parameters


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


class _Rewound:
    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[Any]:
        self._reader.rewind()  # the first time too: who has read from it before left it where it was
        return iter(self._reader.get_next, None)


class _Spooled:
    """Batches that come only once. TMPDIR says where they are written; they are removed with this object."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._folder = tempfile.mkdtemp(prefix="normfuse-")
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        self._spooled = 0

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while True:
            path = os.path.join(self._folder, f"{index}.pt")
            if index < self._spooled:
                yield torch.load(path, weights_only=True)
            else:
                given = next(self._source, _END)
                if given is _END:
                    return
                batch = _as_tensors(given, index)
                torch.save(batch, path)
                self._spooled = index + 1
                yield batch
            index += 1


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


_END = object()
