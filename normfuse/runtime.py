"""ONNX Runtime sessions: the only module that imports `onnxruntime`.

Proofs run at level `disabled` (ORT_DISABLE_ALL: the model as written), then at `enabled` (ORT_ENABLE_ALL: what the
user gets).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from normfuse.errors import TargetError

Level = Literal["disabled", "enabled"]
LEVELS: tuple[Level, ...] = ("disabled", "enabled")

Array = np.ndarray[Any, Any]

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "portable": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


class Session:
    """A model loaded by ONNX Runtime.

    Attributes:
        name: what error messages call the model.
        inputs: names of the inputs, in order.
        outputs: names of the outputs, in order.
    """

    def __init__(self, name: str, native: Any) -> None:
        self.name = name
        self._native = native
        self.inputs = [value.name for value in native.get_inputs()]
        self.outputs = [value.name for value in native.get_outputs()]

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: arrays by input name.
            names: the outputs to compute; all of them by default.

        Raises:
            TargetError: the runtime failed at a node.
        """
        wanted = list(self.outputs if names is None else names)
        try:
            arrays = {name: np.asarray(array) for name, array in inputs.items()}
            return dict(zip(wanted, self._native.run(wanted, arrays), strict=True))
        except Exception as error:
            raise TargetError(f"{self.name}: ONNX Runtime failed to run it: {_one_line(error)}") from error


def session(
    model: ir.Model | bytes | str | Path,
    level: Level = "enabled",
    provider: str = "cpu",
    threads: int | None = None,
    *,
    name: str | None = None,
    strict: bool = True,
) -> Session:
    """Loads a model into ONNX Runtime.

    Args:
        model: the model, serialized, as a file or in memory.
        level: `disabled` runs the model as written, `enabled` lets the runtime optimize it first.
        provider: `cpu`, `portable` (the same) or `cuda`, with TF32 off.
        threads: intra-op threads; all processors by default.
        name: what errors call the model; the file or graph name by default.
        strict: whether nothing may fall back to the CPU with `cuda`.

    Raises:
        TargetError: ONNX Runtime or the provider is missing, or it cannot load the model.
    """
    require(provider)
    runtime = _import()
    if name is None:
        name = model.graph.name or "the model" if isinstance(model, ir.Model) else _file_name(model)
    native, options = _PROVIDERS[provider]
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = (
        runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if level == "disabled"
        else runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads or 0
    if provider == "cuda" and strict:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        loaded = runtime.InferenceSession(
            _payload(model), settings, providers=[(native, options)], enable_fallback=False
        )
    except Exception as error:
        raise TargetError(f"{name}: ONNX Runtime cannot load it: {_one_line(error)}") from error
    if loaded.get_providers()[0] != native:
        raise TargetError(f"{name}: ONNX Runtime did not start {native}, only {', '.join(loaded.get_providers())}")
    return Session(name, loaded)


def require(provider: str) -> str:
    """The version of the ONNX Runtime that is installed.

    Raises:
        TargetError: it is missing, or has not this provider.
    """
    runtime, native = _import(), _PROVIDERS[provider][0]
    if native not in runtime.get_available_providers():
        raise TargetError(f"ONNX Runtime has no {native} here; install normfuse[gpu] without onnxruntime, or use cpu")
    return str(runtime.__version__)


def has_provider(provider: str) -> bool:
    """Whether ONNX Runtime is installed with a provider: `cpu`, `portable` or `cuda`.

    Raises:
        TargetError: ONNX Runtime is missing.
    """
    return _PROVIDERS[provider][0] in _import().get_available_providers()


def _import() -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise TargetError("ONNX Runtime is not installed; run: pip install normfuse[cpu]") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def _payload(model: ir.Model | bytes | str | Path) -> bytes | str:
    if isinstance(model, ir.Model):
        from normfuse.model import serialize

        return serialize(model)
    return model if isinstance(model, bytes) else os.fspath(model)


def _file_name(model: bytes | str | Path) -> str:
    return "the model" if isinstance(model, bytes) else Path(model).name


def _one_line(error: BaseException) -> str:
    """The reason in an exception of the runtime, without its codes and source locations."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:300]
