"""The harness of the rule tests: small models with random weights, optimized and judged against the float64 oracle.

A test writes a model as ONNX text, gives its weights as shapes or arrays, and asserts on what came out::

    model = build("(float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w)  y = BatchNormalization(c, n_scale, "
                  "n_bias, n_mean, n_var) }", w=(4, 3, 3, 3), **batch_norm("n", 4))
    result = fold(model)                       # optimized, checked, parity asserted
    assert ops(result.model) == {"Conv": 1}
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types

from normfuse.oracle import Oracle
from normfuse.pipeline import Result, optimize

Array = npt.NDArray[Any]

FAMILIES: Mapping[str, tuple[float, float]] = {
    "small": (0.0, 1e-3),
    "normal": (0.0, 1.0),
    "large": (0.0, 1e2),
    "mean 30": (30.0, 1.0),
}
"""Mean and standard deviation of the inputs."""

BATCHES = (1, 3)
"""What the first dynamic dimension of an input is run with."""

_UNIT_ROUND_OFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def rng(name: str) -> np.random.Generator:
    """A generator of random numbers that depends on a name alone."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def batch_norm(prefix: str, channels: int, dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    """The four parameters `{prefix}_scale`, `_bias`, `_mean`, `_var` of a BatchNormalization, none of them trivial."""
    draw = rng(prefix)
    sign = np.where(np.arange(channels) % 3 == 1, -1.0, 1.0)
    return {
        f"{prefix}_scale": (sign * draw.uniform(0.5, 2.0, channels)).astype(dtype),
        f"{prefix}_bias": draw.normal(0.3, 1.0, channels).astype(dtype),
        f"{prefix}_mean": draw.normal(0.5, 1.0, channels).astype(dtype),
        f"{prefix}_var": draw.uniform(0.2, 3.0, channels).astype(dtype),
    }


def build(
    text: str,
    *,
    opset: int = 18,
    ir_version: int = 10,
    dtype: npt.DTypeLike = np.float32,
    listed: bool = False,
    imports: Mapping[str, int] | None = None,
    functions: str = "",
    **weights: tuple[int, ...] | Array | np.generic,
) -> onnx.ModelProto:
    """Makes a model of ONNX text; nodes without a name take that of their first output.

    Args:
        text: inputs, outputs and nodes: `(float[N,3] x) => (float[N,3] y) { y = Mul(x, c) }`.
        opset: of the default domain.
        ir_version: of the model.
        dtype: of the weights that are given by shape.
        listed: whether the weights are listed as inputs of the graph too.
        imports: opsets of further domains.
        functions: model-local functions, as ONNX text.
        weights: initializers by name; a tuple is a shape that is filled from N(0.2, 1), seeded by the name.
    """
    opsets = {"": opset} | dict(imports or {})
    imported = ", ".join(f'"{domain}" : {version}' for domain, version in opsets.items())
    model = onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imported}]> main {text} {functions}")
    for name, content in weights.items():
        array = rng(name).normal(0.2, 1.0, content).astype(dtype) if isinstance(content, tuple) else content
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        if listed:
            info = onnx.helper.make_tensor_value_info(name, model.graph.initializer[-1].data_type, array.shape)
            model.graph.input.append(info)
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


@dataclass(frozen=True, slots=True)
class Case:
    """A model for a row of a rule table.

    Attributes:
        rule: the name of the row.
        what: the rest of the test's id.
        text: the model as `build` takes it.
        expected: where the rule applies, the operators that are left, separated by spaces; else the reason.
        weights: the weights and options of `build`.
        by: what the report calls the change; the row's own name where empty.
    """

    rule: str
    what: str
    text: str
    expected: str
    weights: Mapping[str, Any]
    by: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"

    @property
    def model(self) -> onnx.ModelProto:
        """The model."""
        return build(self.text, **self.weights)

    def assert_applies(self) -> Result:
        """Asserts that the rule changes the model into what is expected, and that both compute the same."""
        result = fold(self.model)
        assert ops(result.model) == Counter(self.expected.split()), reasons_of(result)
        assert (self.by or self.rule) in rules_of(result), rules_of(result)
        return result

    def assert_refuses(self) -> Result:
        """Asserts that the model keeps its operators, and that a refusal gives the reason which is expected."""
        return refuse(self.model, self.expected)


def case(rule: str, what: str, text: str, expected: str, by: str = "", **weights: Any) -> Case:
    """Makes a `Case`."""
    return Case(rule, what, text, expected, weights, by)


def names(cases: Iterable[Case]) -> set[str]:
    """The rows that have a case."""
    return {item.rule for item in cases}


def ops(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes there are of each operator type, in the graph, its subgraphs and the model-local functions."""
    return Counter(
        node.op_type for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in _all(nodes)
    )


def _all(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all(graph.node)


def rules_of(result: Result) -> set[str]:
    """The names of the rules that changed something."""
    return {change.rule for change in result.report.changes}


def reasons_of(result: Result) -> str:
    """Why what was refused was refused, one reason a line: `rule node: reason`."""
    return "\n".join(f"{refusal.rule} {refusal.node}: {refusal.reason}" for refusal in result.report.refusals)


def weights_of(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers of the main graph."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def fold(model: onnx.ModelProto, *, sizes: Mapping[str, int] | None = None, **options: Any) -> Result:
    """Optimizes a model, asserts that the result is valid, no larger and computes the same, and returns it.

    Args:
        model: the model; it must not change.
        sizes: of dynamic dimensions that are not the batch, by symbol; 4 where not given.
        options: of `normfuse.pipeline.optimize`; normalizations are lowered only where `ignore` says so.
    """
    before = model.SerializeToString(deterministic=True)
    options.setdefault("ignore", ["block", "lower"])
    result = optimize(model, verify=False, **options)
    assert model.SerializeToString(deterministic=True) == before, "the caller's model was changed"
    assert_same(model, result.model, sizes=sizes)
    return result


def refuse(model: onnx.ModelProto, reason: str, **options: Any) -> Result:
    """Asserts that a model keeps its operators, and that one of the refusals says why."""
    result = fold(model, **options)
    assert ops(result.model) == ops(model), rules_of(result)
    assert reason in reasons_of(result)
    return result


def assert_same(
    original: onnx.ModelProto, optimized: onnx.ModelProto, *, sizes: Mapping[str, int] | None = None
) -> None:
    """Asserts that a model is valid, has the interface of another and no more nodes, and computes the same.

    For each family of inputs, pooled over the batch sizes, y64 being what the original computes in float64 and u the
    unit round-off of the coarsest dtype that the model stores:

        ‖y − y64‖ ≤ 2 · max(‖y_original − y64‖, 4 u ‖y64‖)
    """
    for full in (True, False):
        if _is_valid(original, full):
            onnx.checker.check_model(optimized, full_check=full)
    assert ops(optimized).total() <= ops(original).total(), "there are more nodes than before"
    assert [value.name for value in optimized.graph.output] == [value.name for value in original.graph.output]
    assert list(optimized.graph.output) == list(original.graph.output), "types of outputs changed"
    initial = {tensor.name for tensor in original.graph.initializer}
    fed = [value for value in original.graph.input if value.name not in initial]
    assert [value for value in optimized.graph.input if value.name not in initial] == fed, "inputs changed"
    stored = max((_UNIT_ROUND_OFF.get(array.dtype.name, 0.0) for array in weights_of(original).values()), default=0.0)
    runs = [_runner(original), _runner(optimized)]
    exact = Oracle(ir.from_proto(original))
    for family, (mean, spread) in FAMILIES.items():
        errors: dict[str, list[float]] = {}
        for batch in BATCHES:
            feeds = {value.name: _input(value, batch, mean, spread, sizes or {}) for value in fed}
            y64 = exact.run(feeds)
            results = [run(feeds) for run in runs]
            for name, wanted in y64.items():
                before, after = (result[name] for result in results)
                assert after.shape == before.shape == wanted.shape, f"{name}: shape {after.shape}, not {before.shape}"
                assert after.dtype == before.dtype, f"{name}: dtype {after.dtype}, not {before.dtype}"
                if before.dtype.name not in _UNIT_ROUND_OFF:
                    np.testing.assert_array_equal(after, before, err_msg=name)
                    continue
                counted = np.isfinite(wanted) & np.isfinite(before)
                overflown = after[~counted].astype(np.float64)
                same = _same(overflown, wanted[~counted]) or _same(overflown, before[~counted])
                assert same, f"{name}: infinite or NaN elsewhere than before"
                terms = (_square(before, wanted, counted), _square(after, wanted, counted), _square(0, wanted, counted))
                unit = max(stored, _UNIT_ROUND_OFF[before.dtype.name])
                sums = errors.setdefault(name, [0.0, 0.0, 0.0, unit])
                sums[:3] = [total + term for total, term in zip(sums[:3], terms, strict=True)]
        for name, (before_error, after_error, size, unit) in errors.items():
            before_error, after_error = np.sqrt(before_error), np.sqrt(after_error)
            bound = 2 * max(before_error, 4 * unit * np.sqrt(size))
            assert after_error <= bound, f"{name}, {family}: error {after_error:.3g}, was {before_error:.3g}"


def _is_valid(model: onnx.ModelProto, full: bool) -> bool:
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _square(array: Array | float, wanted: Array, where: Array) -> float:
    """‖array − wanted‖² over the elements that are counted."""
    difference = np.broadcast_to(array, wanted.shape)[where].astype(np.float64) - wanted[where]
    return float(np.sum(difference**2))


def _same(array: Array, other: Array) -> bool:
    return np.array_equal(array, other.astype(np.float64), equal_nan=True)


def _input(info: onnx.ValueInfoProto, batch: int, mean: float, spread: float, sizes: Mapping[str, int]) -> Array:
    tensor = info.type.tensor_type
    names = [dim.dim_param for dim in tensor.shape.dim]
    shape = [
        dim.dim_value if dim.HasField("dim_value") else sizes.get(name, batch if place == names.index(name) == 0 else 4)
        for place, (dim, name) in enumerate(zip(tensor.shape.dim, names, strict=True))
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    draw = rng(f"{info.name} {batch} {mean} {spread}")
    if dtype.kind == "b" or dtype.kind in "iu":
        return draw.integers(0, 2, shape).astype(dtype)
    return draw.normal(mean, spread, shape).astype(dtype)


def _runner(model: onnx.ModelProto) -> Any:
    """ONNX Runtime without its optimizer; where it has no kernel, the oracle on the weights as they are stored."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    kinds = {info.name: info.type.tensor_type.elem_type for info in model.graph.output}
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        oracle = Oracle(ir.from_proto(model))
        dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in kinds.items()}
        return lambda feeds: {name: array.astype(dtypes[name]) for name, array in oracle.run(feeds).items()}
    if any(value.type == "tensor(bfloat16)" for value in (*session.get_inputs(), *session.get_outputs())):
        raise NotImplementedError("ONNX Runtime takes no bfloat16 from numpy: cast at the inputs and outputs")

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(kinds, session.run(list(kinds), dict(feeds)), strict=True))

    return run


BFLOAT16 = ml_dtypes.bfloat16
"""The dtype of bfloat16 weights in numpy."""
