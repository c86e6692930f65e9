"""Tests that import `models`, and with it torch, are left out where torch is not installed: `scripts/test --oldest`."""

from importlib.util import find_spec

NEED_TORCH = ["test_activations.py", "test_norm.py", "test_scale.py", "test_spellings.py"]

collect_ignore = [] if find_spec("torch") else NEED_TORCH
