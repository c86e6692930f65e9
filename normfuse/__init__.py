"""normfuse makes normalization cheap at inference, and proves it.

The public names are loaded when they are first used, so that `normfuse --help` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfuse.calibration import calibrate as calibrate
    from normfuse.errors import ModelError as ModelError
    from normfuse.errors import NormfuseError as NormfuseError
    from normfuse.exporting import export as export
    from normfuse.inspection import inspect as inspect
    from normfuse.model import save as save
    from normfuse.pipeline import Result as Result
    from normfuse.pipeline import optimize as optimize
    from normfuse.report import Report as Report
    from normfuse.target import Target as Target
    from normfuse.verification import Parity as Parity
    from normfuse.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "ModelError": "errors",
    "NormfuseError": "errors",
    "Parity": "verification",
    "Report": "report",
    "Result": "pipeline",
    "Target": "target",
    "calibrate": "calibration",
    "export": "exporting",
    "inspect": "inspection",
    "optimize": "pipeline",
    "save": "model",
    "verify": "verification",
}

__all__ = [
    "ModelError",
    "NormfuseError",
    "Parity",
    "Report",
    "Result",
    "Target",
    "calibrate",
    "export",
    "inspect",
    "optimize",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"normfuse.{_HOME[name]}"), name)
    raise AttributeError(f"module 'normfuse' has no attribute {name!r}")
