"""Tests that import `models`, and with it torch, are left out where torch is not installed: `scripts/test --oldest`."""

import os
from importlib.util import find_spec

NEED_TORCH = ["test_activations.py", "test_norm.py", "test_scale.py", "test_spellings.py"]

collect_ignore = [] if find_spec("torch") else NEED_TORCH

for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)  # what tests make fail must not be annotated
