"""The two models of a verification as they run: `Contest`, and the edited copies of them that it runs.

Edits are made on clones: more outputs, so that inner values can be seen, and weights moved by one unit in the last
place.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import TargetError
from normfuse.evaluated import Evaluated
from normfuse.foreign import Foreign, Runner, Truth
from normfuse.metric import PRECISIONS, Precision, is_float
from normfuse.operator_types import misfit
from normfuse.oracle import Oracle, OracleError
from normfuse.ports import inputs_of
from normfuse.probes import Inputs, move
from normfuse.runtime import LEVELS, TF32, Level, has_provider, is_installed, is_invalid, require, session
from normfuse.scaled import is_mapped
from normfuse.stand_in import as_defined
from normfuse.streaming import STREAMED, settled, weight_bytes

Array = np.ndarray[Any, Any]
Values = dict[str, Array]

_TRANSPARENT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SATURATING = frozenset({"Sigmoid", "Softmax", "Tanh"})
_NO_KERNEL = "NOT_IMPLEMENTED"
"""What ONNX Runtime says where a provider has no kernel for a node."""
_WEIGHED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization"}
    | {"Add", "Div", "Mul", "Sub"}
)
"""Operators whose constants are weights: each was rounded once, and what is computed of them is rounded again."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """The value in front of a saturating operator at an output.

    Attributes:
        output: the output.
        operator: the operator's type.
        axis: the axis along which a Softmax ignores a shift, else None.
        names: of the value in the reference and in the candidate.
    """

    output: str
    operator: str
    axis: int | None
    names: tuple[str, str]

    @property
    def title(self) -> str:
        """What reports call it."""
        return f"{self.output} (before {self.operator})"


class Contest:
    """Both models as they are loaded into the runtime, and the values that are judged.

    Attributes:
        reference: the model as it was.
        truth: what the oracle computes.
        provider: where both run.
        outputs: names of the outputs, in order.
        hidden: values that are judged besides.
        owners: the output that each hidden value belongs to, by its title.
        axes: for what stands before a Softmax the axis along which it ignores a shift, by title.
        precision: of the dtype that the reference computes in.
        sigmoids: outputs that a Sigmoid makes: the runtime's error there is absolute.
        absolute: these outputs, and what stands before a Sigmoid or Softmax: they see absolute differences only.
        candidate: the model as it became.
        streams: whether one session is open at a time, as the models are large.
        sessions: those that are open, by model (0 the reference, 1 the candidate, 2 the reference with moved weights)
            and optimization level.
        levels: the optimization levels that are judged; with CUDA a float32 model is judged with TF32 on as well.
        notes: what else than the provider runs the models, and why.
        refused: why the reference did not run on the last inputs that it did not accept, or nothing.
    """

    def __init__(
        self,
        reference: ir.Model,
        candidate: ir.Model,
        provider: str,
        *,
        stand_in: bool = False,
        levels: tuple[Level, ...] = LEVELS,
        truth: ir.Model | None = None,
        evaluates: bool = False,
    ) -> None:
        """Loads both models.

        Args:
            reference: the model as it was.
            candidate: the model as it became.
            provider: where both run.
            stand_in: whether the CPU provider runs them where ONNX Runtime does not have that provider here, and the
                reference evaluator where the CPU provider cannot load them; where that is the provider that was asked
                for, if it has no kernels for the reference, or takes none of its arrays. Where ONNX Runtime is not
                installed, the evaluator runs them in any case, unless it is CUDA that was asked for.
            levels: the optimization levels to judge, `disabled` among them.
            truth: what the oracle computes, where its weights are known better than the reference stores them.
            evaluates: whether the reference evaluator runs them in any case.

        Raises:
            TargetError: a model cannot be loaded.
        """
        self.reference = reference
        self.notes: list[str] = []
        self.refused = ""
        self.truth = reference if truth is None else truth
        self.levels = levels
        self._evaluates = evaluates or not is_installed()
        if not is_installed() and not stand_in and provider == "cuda":
            require(provider)
        self._stands_in = stand_in and not self._evaluates and not has_provider(provider)
        foreign = [isinstance(model, Foreign) for model in (reference, candidate)]
        if self._evaluates or all(foreign):
            self.levels = LEVELS[:1]
        if not is_installed() and not all(foreign):
            self.notes.append(
                "ONNX Runtime is not installed: judged by onnx's reference evaluator in the types of the model, as "
                "written; what the kernels of a provider and the runtime's own optimizer make of it was not judged"
            )
        if self._stands_in:
            self.notes.append(f"not run on {provider.upper()}: ONNX Runtime does not have it here; run on the CPU")
        self.provider = "cpu" if self._stands_in else provider
        self._strict = not stand_in or self.provider == "cpu"
        self.outputs = [str(value.name) for value in reference.graph.outputs]
        self.hidden = hidden_values(reference, candidate)
        self.owners = {hidden.title: hidden.output for hidden in self.hidden}
        self.axes = {hidden.title: hidden.axis for hidden in self.hidden if hidden.axis is not None}
        self.precision = precision_of(reference)
        if self.provider == "cuda" and levels == LEVELS == self.levels and self.precision.name == "float32":
            if any(foreign):
                self.notes.append("not judged with TF32 on: one of the two is no ONNX model")
            else:
                self.levels = (*LEVELS, TF32)
        self.sigmoids = {
            str(value.name)
            for value in reference.graph.outputs
            if (node := _activation(value)) and node.op_type == "Sigmoid"
        }
        self.absolute = self.sigmoids | {hidden.title for hidden in self.hidden if hidden.operator != "Tanh"}
        self.streams = weight_bytes(reference) + weight_bytes(candidate) > STREAMED
        if self.streams:
            candidate = settled(candidate)
            self.notes.append("both models are large: one session is open at a time")
        self.candidate = candidate
        self.sessions: dict[tuple[int, Level], Runner] = {}
        self._rehearsed: dict[tuple[int, Level, int], Values | TargetError] = {}
        self._hands: list[tuple[Inputs, Inputs]] = []
        reason = ""
        try:
            self._load()
            if stand_in and self.provider != "cuda" and not self._evaluates and takes_bfloat16(reference):
                reason = "takes and gives no bfloat16 in Python"  # both could be loaded, if not run
        except TargetError as error:
            whole = isinstance(reference, Foreign)  # it runs anywhere, and tells nothing about kernels
            first = whole or (0, "disabled") not in self.sessions
            lacks = self.provider != "cuda" and first and _NO_KERNEL in str(error)
            if self._stands_in and not is_invalid(error):
                reason = f"does not have it here, and its CPU provider cannot run both models ({error})"
            elif stand_in and lacks:
                which = "model, which cannot run on it" if whole else "original, which cannot run on it either"
                reason = f"has not all kernels there for the {which} ({error})"
            else:
                raise
        if reason or self._evaluates:
            _check_types(reference, "the reference")
            _check_types(candidate, "the candidate")
        if reason:
            self._evaluates, self.levels = True, LEVELS[:1]
            self.notes[:] = [
                f"not run on {provider.upper()}: ONNX Runtime {reason}; judged by the reference evaluator in the types "
                "of the model"
            ]
            self.sessions.clear()
            self._load()

    def _load(self) -> None:
        for who in (0, 1):
            for level in self.levels:
                if not self.streams or (who, level) == (0, "disabled"):
                    self.session(who, level)

    def session(self, who: int, level: Level) -> Runner:
        """The reference (0), the candidate (1) or the reference with moved weights (2), loaded where it is not yet.

        Raises:
            TargetError: it cannot be loaded.
        """
        if (who, level) not in self.sessions:
            if self.streams:
                self.sessions.clear()
            title = ("the reference", "the candidate", "the reference with moved weights")[who]
            model = self.candidate if who == 1 else self.reference
            if who == 2:
                model = _with_moved_weights(model)
            if level == "disabled":
                model = with_outputs(model, [hidden.names[who % 2] for hidden in self.hidden])
            self.sessions[who, level] = self.open(model, level, title)
        return self.sessions[who, level]

    def rehearse(self, hands: Sequence[tuple[Inputs, Inputs]], seconds: float, *, shaken: bool = False) -> int:
        """Where one model is open at a time, runs all of them now, each on everything; `run` finds the results.

        Args:
            hands: inputs, each with the same moved by one unit in the last place.
            seconds: what that may take; the first inputs are run in any case.
            shaken: whether the reference with moved weights runs, too.

        Returns:
            on how many of the inputs they ran.

        Raises:
            TargetError: a model cannot be loaded.
        """
        if not self.streams:
            return len(hands)
        self._rehearsed.clear()
        self._hands = list(hands)  # results are found by identity, so the inputs must live
        turns = (
            [(0, level) for level in self.levels] + [(2, LEVELS[0])] * shaken + [(1, level) for level in self.levels]
        )
        for who, level in turns:
            self.session(who, level)
            for number, (inputs, moved) in enumerate(self._hands):
                start = time.perf_counter()
                for one in (inputs, moved) if who == 0 and level in ("disabled", TF32) else (inputs,):
                    try:
                        self._rehearsed[who, level, id(one)] = self.run(who, level, one)
                    except TargetError as error:
                        self._rehearsed[who, level, id(one)] = error
                if number == 0 and (who, level) == (0, "disabled"):
                    each = (time.perf_counter() - start) * (len(turns) + 1) / 2
                    del self._hands[max(1, int(seconds / each)) :]
        self.sessions.clear()
        return len(self._hands)

    def open(self, model: ir.Model, level: Level, name: str) -> Runner:
        """Loads a model where both models run.

        Raises:
            TargetError: it cannot be loaded there.
        """
        if isinstance(model, Foreign):
            return model.runner(name)
        if self._evaluates:
            return Evaluated(model, name)
        if self._stands_in:
            model = as_defined(model)
        try:
            return session(model, level, self.provider, name=name)
        except TargetError as error:
            if self._strict:
                raise
            loaded = session(model, level, self.provider, name=name, strict=False)
            note = f"{name} does not run on {self.provider.upper()} alone, but in part on the CPU: {error}"
            self.notes.extend([note] if note not in self.notes else [])
            return loaded

    def oracle(self) -> Truth:
        """What computes y64.

        Raises:
            OracleError: the reference holds what nothing can compute in float64.
        """
        return self.truth.truth() if isinstance(self.truth, Foreign) else Oracle(self.truth)

    def run(self, who: int, level: Level, inputs: Inputs) -> Values:
        """What a model gives on some inputs; what is hidden stands under its title.

        Args:
            who: 0 the reference, 1 the candidate, 2 the reference with moved weights.
            level: the optimization level.
            inputs: arrays by input name.

        Raises:
            TargetError: it does not run on them.
        """
        known = self._rehearsed.get((who, level, id(inputs)))
        if isinstance(known, TargetError):
            raise known
        return self.titled(self.session(who, level).run(inputs), who) if known is None else known

    def titled(self, values: Mapping[str, Array], who: int) -> Values:
        """The judged values by title."""
        seen = {name: np.asarray(values[name]) for name in self.outputs if name in values}
        for hidden in self.hidden:
            if hidden.names[who % 2] in values:
                seen[hidden.title] = np.asarray(values[hidden.names[who % 2]])
        return seen

    def accepts(self, inputs: Inputs) -> bool:
        """Whether the reference runs on these inputs, and leaves no output empty."""
        try:
            values = self.session(0, "disabled").run(inputs)
        except TargetError as error:
            self.refused = str(error)
            return False
        return all(np.size(value) for value in values.values())


def _check_types(model: ir.Model, name: str) -> None:
    """What ONNX Runtime does not load must be valid all the same: the reference evaluator runs anything.

    Raises:
        TargetError: an operator is given floats that it does not take.
    """
    found = None if isinstance(model, Foreign) else misfit(model)
    if found is not None:
        advice = f"; raise the model to opset {found.since}" if found.since else "; cast around it"
        raise TargetError(f"{name} is no valid ONNX: {found}{advice}")


def takes_bfloat16(model: ir.Model) -> bool:
    """Whether an input or output of a model is bfloat16."""
    return ir.DataType.BFLOAT16 in {value.dtype for value in [*inputs_of(model), *model.graph.outputs]}


def first_divergence(contest: Contest, oracle: Truth, inputs: Inputs) -> str:
    """The first value of the reference, in the order of its nodes, about which oracle and runtime disagree."""
    values = [
        value
        for node in contest.reference.graph
        if node.op_type != "Constant"
        for value in node.outputs
        if value.name and (value.uses() or value.is_graph_output())
    ]
    names = [str(value.name) for value in values]
    try:
        native = contest.open(with_outputs(contest.reference, names), "disabled", "the reference").run(inputs)
        truth = oracle.run(inputs, names)
    except (TargetError, OracleError):
        return "a value that could not be found"
    for value in values:
        name = str(value.name)
        ours, theirs = truth.get(name), native.get(name)
        if not isinstance(ours, np.ndarray) or not isinstance(theirs, np.ndarray):
            continue
        if ours.shape != theirs.shape or (is_float(theirs) and _distance(theirs, ours) > contest.precision.doubt):
            node = value.producer()
            return f"{name!r} ({node.op_type if node else 'input'})"
    return "no single value"


def _distance(y: Array, truth: Array) -> float:
    wide = y.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(truth)
    norm = float(np.linalg.norm(truth[finite]))
    return float(np.linalg.norm(wide[finite] - truth[finite])) / (norm or 1.0)


def hidden_values(reference: ir.Model, candidate: ir.Model) -> list[Hidden]:
    """What stands in front of the saturating operators at the outputs, where both models have the same one."""
    found = []
    for old, new in zip(reference.graph.outputs, candidate.graph.outputs, strict=True):
        before, after = _activation(old), _activation(new)
        if before is None or after is None or before.op_type != after.op_type:
            continue
        values = before.inputs[0], after.inputs[0]
        if any(value is None or value.is_graph_output() or value.producer() is None for value in values):
            continue
        axis = None
        if before.op_type == "Softmax":
            axis = before.attributes.get_int("axis", 1 if reference.opset_imports.get("", 13) < 13 else -1)
        names = str(values[0].name), str(values[1].name)  # type: ignore[union-attr]  # None was sorted out above
        found.append(Hidden(str(old.name), before.op_type, axis, names))
    return found


def _activation(output: ir.Value) -> ir.Node | None:
    """The saturating operator that makes an output, seen through reshapes."""
    node = output.producer()
    while node is not None and node.op_type in _TRANSPARENT and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type in _SATURATING else None


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy with more outputs; those it has already are not repeated."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    by_name = {value.name: value for node in copy.graph for value in node.outputs}
    for name in dict.fromkeys(names):
        if name in by_name and name not in present:
            copy.graph.outputs.append(by_name[name])
    return copy


def _with_moved_weights(model: ir.Model) -> ir.Model:
    """A copy whose weights of linear and affine operators are moved by one unit in the last place, as by rounding."""
    if isinstance(model, Foreign):
        return model.moved()
    copy, rng = model.clone(), np.random.default_rng(2)
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and _is_weight(value):
                value.const_value = _moved_tensor(value.const_value, rng)
        for node in graph:
            attribute = node.attributes.get("value")
            if node.op_type == "Constant" and attribute is not None and _is_weight(node.outputs[0]):
                node.attributes["value"] = ir.AttrTensor("value", _moved_tensor(attribute.as_tensor(), rng))
    return copy


def _is_weight(value: ir.Value) -> bool:
    """Whether a linear or affine operator reads a value."""
    return any(node.op_type in _WEIGHED for node, _ in value.uses())


def _moved_tensor(tensor: ir.TensorProtocol, rng: np.random.Generator) -> ir.TensorProtocol:
    """A tensor that is moved now, or, where it is mapped, whenever it is read: then each time in the same way."""
    if not is_mapped(tensor):
        return ir.tensor(move(tensor.numpy(), rng), name=tensor.name)
    seed = int(rng.integers(2**32))

    def moved() -> ir.TensorProtocol:
        return ir.tensor(move(tensor.numpy(), np.random.default_rng(seed)), name=tensor.name)

    return ir.LazyTensor(moved, tensor.dtype, ir.Shape(list(tensor.shape.numpy())), cache=False, name=tensor.name)


def precision_of(model: ir.Model) -> Precision:
    """That of the coarsest float type a model computes in; weights that are only cast do not count."""
    kinds: set[ir.DataType | None] = set(model.kinds) if isinstance(model, Foreign) else set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if any(node.op_type != "Cast" for node, _ in value.uses()):
                kinds.add(value.dtype)
        for node in graph:
            if node.op_type == "Cast":
                kinds.add(ir.DataType(node.attributes.get_int("to", 1)))
    kinds |= {value.dtype for value in [*model.graph.inputs, *model.graph.outputs]}
    for name in reversed(PRECISIONS):
        if any(
            kind is not None and kind.name == {"float64": "DOUBLE", "float32": "FLOAT"}.get(name, name.upper())
            for kind in kinds
        ):
            return PRECISIONS[name]
    return PRECISIONS["float32"]
