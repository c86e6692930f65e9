"""What batches were read, as numbers that fit into a state: `Digest`."""

import hashlib
from collections.abc import Iterable

import numpy as np

from normfuse.batch_inputs import Batch


class Digest:
    """The SHA-256 of batches: of their sequence, and of which batch stands at which place, whoever has read it.

    The second is Σ SHA-256(batch, place) mod 2²⁵⁶: what the shards of a pass have read adds up to what the whole has.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._sum = 0

    def add(self, batch: Batch, place: int) -> None:
        """Adds a batch: names, dtypes, shapes and numbers; and its place among those of all shards."""
        one = hashlib.sha256()
        for name in sorted(batch):
            array = batch[name]
            one.update(repr((name, array.dtype.str, array.shape)).encode())
            if array.dtype.kind == "O":  # strings
                one.update(repr(array.tolist()).encode())
            else:
                one.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._hash.update(one.digest())
        one.update(place.to_bytes(8, "little"))
        self._sum += int.from_bytes(one.digest(), "little")

    def __str__(self) -> str:
        return self._hash.hexdigest()

    @property
    def content(self) -> str:
        """Which batch stands at which place."""
        return f"{self._sum % 2**256:064x}"


def joined(contents: Iterable[str]) -> str:
    """`Digest.content` of the batches of several shards together."""
    return f"{sum(int(one, 16) for one in contents) % 2**256:064x}"
