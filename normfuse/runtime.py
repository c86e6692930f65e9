"""ONNX Runtime sessions: the only module that imports `onnxruntime`.

Proofs run at level `disabled` (ORT_DISABLE_ALL: the model as written), then at `enabled` (ORT_ENABLE_ALL: what the
user gets).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from normfuse.errors import TargetError

Level = Literal["disabled", "enabled", "enabled, TF32"]
LEVELS: tuple[Level, ...] = ("disabled", "enabled")
TF32: Level = "enabled, TF32"
"""With CUDA, what users get by default: float32 matrix products and convolutions round their operands to TF32."""

Array = np.ndarray[Any, Any]

Optimizer = Literal["disabled", "basic", "extended", "all", "enabled", "enabled, TF32"]
"""ONNX Runtime's graph optimization levels; `all` and `enabled` are the same, with TF32 on CUDA too."""

_OPTIMIZERS: dict[Optimizer, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
    "enabled": "ORT_ENABLE_ALL",
    "enabled, TF32": "ORT_ENABLE_ALL",
}

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "portable": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}

_INVALID = ("INVALID_GRAPH", "INVALID_PROTOBUF", "Type Error", "ShapeInferenceError")
"""What ONNX Runtime says of a model that is no valid ONNX."""


class Session:
    """A model loaded by ONNX Runtime.

    Attributes:
        name: what error messages call the model.
        inputs: names of the inputs that must be fed, in order.
        optional: names of those that have an initializer, which may be overridden.
        outputs: names of the outputs, in order.
    """

    def __init__(self, name: str, native: Any, model: ir.Model | None = None) -> None:
        """Takes a session of the runtime, and the model whose files it has mapped."""
        self.name = name
        self._native = native
        self._model = model
        self.inputs = [value.name for value in native.get_inputs()]
        self.optional = [value.name for value in native.get_overridable_initializers()]
        self.outputs = [value.name for value in native.get_outputs()]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that take part, as ONNX Runtime calls them."""
        return tuple(self._native.get_providers())

    def bound(self, inputs: Mapping[str, Array], provider: str = "cpu") -> Callable[[], None]:
        """A call that runs the model on inputs that already lie on the device, and leaves the outputs there.

        It has run twice when it is returned: only the second run meets outputs that are bound already.

        Raises:
            TargetError: the runtime failed at a node.
        """
        binding = self._native.io_binding()

        def run() -> None:
            self._native.run_with_iobinding(binding)
            if provider == "cuda":
                binding.synchronize_outputs()

        try:
            for name, array in inputs.items():
                binding.bind_ortvalue_input(name, _import().OrtValue.ortvalue_from_numpy(array, provider, 0))
            for name in self.outputs:
                binding.bind_output(name, provider)
            run()
            try:
                run()
            except Exception:  # a file that states another rank for an output than it has: bound anew, nobody compares
                return self._unbound(binding, run, provider)
        except Exception as error:
            raise TargetError(f"{self.name} does not run: {_one_line(error)}; give other shapes") from error
        return run

    def _unbound(self, binding: Any, run: Callable[[], None], provider: str) -> Callable[[], None]:
        """The same call, its outputs bound anew each time."""

        def anew() -> None:
            binding.clear_binding_outputs()
            for name in self.outputs:
                binding.bind_output(name, provider)
            run()

        anew()
        return anew

    def end_profile(self) -> str:
        """Ends the profile that `session` was asked for, and returns the path of its file."""
        return str(self._native.end_profiling())

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
    level: Optimizer = "enabled",
    provider: str = "cpu",
    threads: int | None = None,
    *,
    name: str | None = None,
    strict: bool = True,
    proves: bool = True,
    profile: str | None = None,
    written: str | None = None,
) -> Session:
    """Loads a model into ONNX Runtime.

    Args:
        model: the model, serialized, as a file or in memory.
        level: `disabled` runs the model as written, `enabled` lets the runtime optimize it first, `enabled, TF32` as
            well with TF32 on.
        provider: `cpu`, `portable` (the same) or `cuda`.
        threads: intra-op threads; all processors by default.
        name: what errors call the model; the file or graph name by default.
        strict: whether nothing may fall back to the CPU with `cuda`.
        proves: with `cuda` TF32 is off. Where it is to be timed instead, it runs as users run it, whatever `strict`
            says, and its threads sleep when it has run: else they would take the cores from the next one.
        profile: writes a profile to a file whose path begins with this.
        written: writes what the runtime makes of the model to this path, its large constants to a file beside it.

    Raises:
        TargetError: ONNX Runtime or the provider is missing, or it cannot load the model.
    """
    require(provider)
    runtime = _import()
    if name is None:
        name = model.graph.name or "the model" if isinstance(model, ir.Model) else _file_name(model)
    native, options = _PROVIDERS[provider]
    if level == TF32:
        if provider != "cuda":
            raise TargetError(f"{name}: only CUDA has TF32; choose provider cuda, or another level than {level!r}")
        options = {"use_tf32": "1"}
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _OPTIMIZERS[level])
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads or 0
    if not proves:
        options = {}
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    elif provider == "cuda" and strict:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    if written is not None:
        settings.optimized_model_filepath = written
        data = f"{Path(written).name}.data"
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    payload, kept = _payload(model, settings)
    if kept is not None and proves and level == "disabled":
        settings.add_session_config_entry("session.disable_prepacking", "1")  # a copy of every weight
    try:
        loaded = runtime.InferenceSession(payload, settings, providers=[(native, options)], enable_fallback=False)
    except Exception as error:
        raise TargetError(f"{name}: ONNX Runtime cannot load it: {_one_line(error)}") from error
    if loaded.get_providers()[0] != native:
        raise TargetError(f"{name}: ONNX Runtime did not start {native}, only {', '.join(loaded.get_providers())}")
    return Session(name, loaded, kept)


def is_invalid(error: TargetError) -> bool:
    """Whether ONNX Runtime refused a model as no valid ONNX, which is not for want of kernels."""
    return any(sign in str(error) for sign in _INVALID)


def require(provider: str) -> str:
    """The version of the ONNX Runtime that is installed.

    Raises:
        TargetError: it is missing, or has not this provider.
    """
    if provider not in _PROVIDERS:
        raise TargetError(f"there is no provider {provider!r}; choose one of {', '.join(_PROVIDERS)}")
    runtime, native = _import(), _PROVIDERS[provider][0]
    if native not in runtime.get_available_providers():
        raise TargetError(f"ONNX Runtime has no {native} here; install normfuse[gpu] without onnxruntime, or use cpu")
    return str(runtime.__version__)


def has_provider(provider: str) -> bool:
    """Whether ONNX Runtime is installed with a provider: `cpu`, `portable` or `cuda`.

    Raises:
        TargetError: ONNX Runtime is installed, but cannot be imported.
    """
    return is_installed() and _PROVIDERS[provider][0] in _import().get_available_providers()


def is_installed() -> bool:
    """Whether there is an ONNX Runtime; one that is broken counts, so that nothing else stands in for it unasked."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401  # it ships no types; only asked for
    except ModuleNotFoundError as error:
        return error.name != "onnxruntime"
    except ImportError:
        return True
    return True


def _import() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            raise TargetError("ONNX Runtime is not installed; run: pip install normfuse[cpu]") from error
        raise TargetError(f"ONNX Runtime cannot be imported: {_one_line(error)}; install it again") from error
    except ImportError as error:
        raise TargetError(f"ONNX Runtime cannot be imported: {_one_line(error)}; install it again") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def _payload(model: ir.Model | bytes | str | Path, settings: Any) -> tuple[bytes | str, ir.Model | None]:
    """What the runtime is given, and a model whose files must stay while it is loaded: those of a large one."""
    if not isinstance(model, ir.Model):
        return model if isinstance(model, bytes) else os.fspath(model), None
    from normfuse import streaming
    from normfuse.model import serialize

    if streaming.weight_bytes(model) < streaming.MAPPED:
        return serialize(model), None
    model = streaming.settled(model)
    data, folder = streaming.mapped_payload(model)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return data, model


def _file_name(model: bytes | str | Path) -> str:
    return "the model" if isinstance(model, bytes) else Path(model).name


def _one_line(error: BaseException) -> str:
    """The reason in an exception of the runtime, without its codes and source locations."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:300]
