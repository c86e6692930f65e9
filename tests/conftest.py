"""Tests that import `models`, and with it torch, are left out where torch is not installed: `scripts/test --oldest`."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

NEED_TORCH = ["test_activations.py", "test_norm.py", "test_scale.py", "test_spellings.py"]

collect_ignore = [] if find_spec("torch") else NEED_TORCH

for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)  # what tests make fail must not be annotated


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on many threads of torch spend their time waiting."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
