"""Hostile files are taken or refused by an error of normfuse; nothing unpickles."""

import ast
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfuse.errors import ModelError, NormfuseError
from normfuse.evaluated import Evaluated
from normfuse.inspection import inspect
from normfuse.model import load
from normfuse.passes.access import RefusedError
from normfuse.passes.inference import infer_shapes
from normfuse.passes.norms import read_norm
from normfuse.passes.weights import Weights
from normfuse.pipeline import optimize
from scripts.hostile import hostile_file
from scripts.mutations import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
HEAD = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]> g '


@pytest.mark.parametrize("kind", ["bytes", "fields", "noise"])
def test_mutants_are_taken_or_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(WEIGHTS)
    refusals = []
    for seed in range(30):
        try:
            optimize(hostile_file(kind, seed), "portable", verify=False)
        except NormfuseError as error:
            refusals.append(error)
    assert {error.exit_status for error in refusals} <= {2, 3}
    assert not any("\n" in str(error) for error in refusals)
    assert len(refusals) > 3


def doubling() -> onnx.ModelProto:
    """Sixty functions, each of which calls the next one twice."""
    model = onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) { y = custom.f0(x) }")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    for i in range(60):
        name, domain = (f"f{i + 1}", "custom") if i < 59 else ("Relu", "")
        nodes = [helper.make_node(name, [a], [b], domain=domain) for a, b in ("ab", "bc")]
        model.functions.append(helper.make_function("custom", f"f{i}", ["a"], ["c"], nodes, imports))
    return model


def twice() -> onnx.ModelProto:
    model = doubling()
    del model.functions[1:]
    model.functions[0].node[0].op_type = model.functions[0].node[1].op_type = "Relu"
    model.functions[0].node[0].domain = model.functions[0].node[1].domain = ""
    model.functions.add().CopyFrom(model.functions[0])
    return model


def node(op_type: str, count: int, **attributes: Any) -> Callable[[], onnx.ModelProto]:
    def made() -> onnx.ModelProto:
        model = onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) { y = Relu(x) }")
        model.graph.node[0].CopyFrom(helper.make_node(op_type, ["x"] * count, ["y"], **attributes))
        return model

    return made


def split(stated: int) -> Callable[[], onnx.ModelProto]:
    """A Split that says how many outputs it has, and has two."""

    def made() -> onnx.ModelProto:
        return onnx.parser.parse_model(
            HEAD
            + f"(float[1,6] x) => (float[1,3] y, float[1,3] z) {{ y, z = Split <axis=1, num_outputs={stated}> (x) }}"
        )

    return made


def same_attribute() -> onnx.ModelProto:
    model = node("LeakyRelu", 1, alpha=0.5)()
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.1))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (doubling, "stands for"),
        (twice, "defined twice"),
        (same_attribute, "two attributes"),
        (node("Sub", 1), "1 inputs, but takes 2"),
        (node("Relu", 3), "3 inputs, but takes 1"),
        (node("Cast", 1), "lacks the attribute 'to'"),
        (node("LeakyRelu", 1, alpha="x"), "of type STRING, not FLOAT"),
        (node("Constant", 0), "none where one value is expected"),
        (node("Relu", 1, body=onnx.GraphProto()), "GRAPH, which its operator does not have"),
        (split(1), "num_outputs=1, but 2 outputs"),  # onnx and ONNX Runtime end the process at it
        (split(2**62), "but 2 outputs"),
        (node("LayerNormalization", 2, axis=2**31), "axis 2147483648, which no tensor has"),  # 2³¹ dimensions
    ],
)
def test_hostile_graphs_are_refused(make: Callable[[], onnx.ModelProto], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(make())


def test_a_split_that_counts_right_is_taken() -> None:
    assert len(load(split(2)()).graph) == 1


def test_attributes_of_a_caller_are_no_numbers() -> None:
    body = (
        '<domain: "custom", opset_import: ["" : 18]> f <n> (a) => (b, c) { b, c = Split <num_outputs: int = @n> (a) }'
    )
    graph = "(float[4] x) => (float[2] y, float[2] z) { y, z = custom.f <n = 2> (x) }"
    assert load(onnx.parser.parse_model(HEAD + graph + body)).functions


TWENTY = '<ir_version: 9, opset_import: ["" : 20, "custom" : 1]> g (float[2,3] x) => (float[2,3] y) '


@pytest.mark.parametrize(
    ("step", "dtype"),
    [
        ("EyeLike (t)", None),
        ("EyeLike <dtype = 11> (t)", ir.DataType.DOUBLE),
        ('RegexFullMatch <pattern = "a"> (t)', ir.DataType.BOOL),
    ],
)
def test_an_input_of_unknown_type_does_not_end_the_process(step: str, dtype: ir.DataType | None) -> None:
    model = load(onnx.parser.parse_model(TWENTY + f"{{ t = custom.odd (x) s = {step} y = custom.odd (s) }}"))
    infer_shapes(model)
    assert model.graph[1].outputs[0].dtype == dtype


def test_an_unknown_type_within_a_branch_or_a_function_does_not_end_the_process() -> None:
    body = "then_branch = a () => (u) { t = custom.odd (x) u = EyeLike (t) }"
    other = "else_branch = b () => (v) { v = custom.f (x) }"
    function = (
        '<domain: "custom", opset_import: ["" : 20, "custom" : 1]> f (p) => (q) { r = custom.odd (p) q = EyeLike (r) }'
    )
    text = f"{{ c = Constant <value = bool {{1}}> () y = If (c) <{body}, {other}> }} {function}"
    model = load(onnx.parser.parse_model(TWENTY + text))
    infer_shapes(model)
    assert model.graph[-1].outputs[0].dtype == ir.DataType.FLOAT


def test_eye_like_has_the_shape_of_its_input() -> None:
    model = load(onnx.parser.parse_model(TWENTY + "{ s = EyeLike <dtype = 11> (x) y = Cast <to = 1> (s) }"))
    infer_shapes(model)
    s = model.graph[0].outputs[0]
    assert (s.dtype, s.shape) == (ir.DataType.DOUBLE, ir.Shape([2, 3]))


@pytest.mark.parametrize("axis", [255, 3, -4])
def test_an_axis_that_the_input_does_not_have(axis: int) -> None:
    text = f"(float[2,3,4] x, float[4] g) => (float[2,3,4] y) {{ y = LayerNormalization <axis = {axis}> (x, g) }}"
    model = load(onnx.parser.parse_model(HEAD + text))
    with pytest.raises(RefusedError, match=f"no axis {axis}"):
        read_norm(model.graph[0], Weights(model))
    assert inspect(model)


def test_the_reference_evaluator_runs_outputs_without_a_type() -> None:
    model = load(onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) { y = Relu (x) }"))
    model.graph.outputs[0].dtype = ir.DataType.UNDEFINED
    y = Evaluated(model, "the model").run({"x": np.array([-1, 1], np.float32)})["y"]
    assert y.dtype == np.float32


@pytest.mark.parametrize(("offsets", "fine"), [((0, 16), True), ((4, 4), True), ((0, 8), False), ((12, 0), False)])
@pytest.mark.parametrize("as_attribute", [False, True])
def test_ranges_of_external_data(offsets: tuple[int, int], fine: bool, as_attribute: bool, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    model = onnx.parser.parse_model(HEAD + "(float[4] x) => (float[4] y) { t = Add(x, a) y = Add(t, b) }")
    for name, offset in zip("ab", offsets, strict=True):
        tensor = TensorProto(name=name, dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        tensor.external_data.add(key="offset", value=str(offset))
        if as_attribute and name == "a":
            model.graph.node.append(helper.make_node("Constant", [], ["a"], value=tensor))
        else:
            model.graph.initializer.append(tensor)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    if fine:
        load(path)
    else:
        with pytest.raises(ModelError, match="overlap"):
            load(path)


def test_nothing_unpickles() -> None:
    found, seen = [], 0
    for folder in ("normfuse", "passes", "scripts", "models"):
        for file in (ROOT / folder).rglob("*.py"):
            for one in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names, place = [], f"{file}:{getattr(one, 'lineno', 0)}"
                if isinstance(one, ast.Import):
                    names = [alias.name for alias in one.names]
                elif isinstance(one, ast.ImportFrom):
                    names = [one.module or ""]
                if {name.split(".")[0] for name in names} & {
                    "pickle",
                    "cPickle",
                    "dill",
                    "joblib",
                    "shelve",
                    "marshal",
                }:
                    found.append(place)
                if isinstance(one, ast.Call) and ast.unparse(one.func) in ("np.load", "numpy.load", "torch.load"):
                    seen += 1
                    key, safe = ("weights_only", True) if "torch" in ast.unparse(one.func) else ("allow_pickle", False)
                    given = {word.arg: ast.unparse(word.value) for word in one.keywords}
                    if given.get(key) != str(safe):
                        found.append(place)
    assert found == []
    assert seen >= 2


def at(location: str, folder: Path, as_attribute: bool, **entries: str) -> Path:
    """A model whose weight, an initializer or in a Constant, lies at a location."""
    model = onnx.parser.parse_model(HEAD + "(float[4] x) => (float[4] y) { y = Add(x, a) }")
    tensor = TensorProto(name="a", dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    if as_attribute:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["a"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("as_attribute", [False, True])
@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("pipe", "is no file"),
        ("folder", "is no file"),
        ("null", "outside the folder"),
        ("secret", "outside the folder"),
        ("/dev/zero", "outside the folder"),
        ("../secret.bin", "outside the folder"),
        ("folder/../../secret.bin", "outside the folder"),
        ("missing", "there is no file"),
        ("", "is no file"),
        (".", "is no file"),
        ("short", "cut short"),
    ],
)
def test_external_data_is_checked_before_it_is_read(
    location: str, words: str, as_attribute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe would be waited for, a device read for ever: nothing is opened."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "null").symlink_to("/dev/null")
    (folder / "secret").symlink_to("../secret.bin")
    (folder / "short").write_bytes(bytes(15))
    path = at(location, folder, as_attribute)

    def never(tensor: ir.ExternalTensor) -> None:
        raise AssertionError(f"{tensor.location} was opened")

    monkeypatch.setattr(ir.ExternalTensor, "_load", never)
    with pytest.raises(ModelError, match=words):
        load(path)


@pytest.mark.parametrize("as_attribute", [False, True])
@pytest.mark.parametrize(
    ("entries", "dims", "data_type", "words"),
    [
        ({"offset": "-4"}, [4], 1, "offset"),
        ({"length": "8"}, [4], 1, "shape needs 16"),
        ({}, [-4], 1, "tell no size"),
        ({}, [2**62, 2**62, 2**62], 1, "cut short"),
        ({}, [4], 0, "tell no size"),
    ],
)
def test_external_data_that_fits_nothing(
    entries: dict[str, str], dims: list[int], data_type: int, words: str, as_attribute: bool, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = at("w.bin", tmp_path, as_attribute, **entries)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.node[0].attribute[0].t if as_attribute else model.graph.initializer[0]
    tensor.dims[:], tensor.data_type = dims, data_type
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("dims", "values", "indices", "words"),
    [
        ([-16], 2, [2], "shape"),
        ([16], 2, [1], "2 values"),
        ([16], 2, [2, 0], "outside"),
        ([4, 4], 2, [2, 1], "outside"),
        ([16], 2, [1, 2], "2 values"),
        ([2**40, 2**40], 2, [2], "too large"),
    ],
)
def test_sparse_tensors_that_contradict_themselves(
    dims: list[int], values: int, indices: list[int], words: str
) -> None:
    model = onnx.parser.parse_model(HEAD + "(float[16] x) => (float[16] y) { y = Add(x, a) }")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("a", 1, [values], [1.0] * values),
        helper.make_tensor("i", 7, indices, [1] * math.prod(indices)),
        dims,
    )
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ModelError, match=words):
        load(model)
    model.graph.sparse_initializer[0].values.data_type = 2**31 - 1
    with pytest.raises(ModelError, match="a"):
        load(model)


def test_references_without_a_function_are_refused() -> None:
    model = node("LeakyRelu", 1)()
    model.graph.node[0].attribute.add(name="alpha", type=1, ref_attr_name="given")
    with pytest.raises(ModelError, match="stands in none"):
        load(model)
    model = twice()
    del model.functions[1]
    model.functions[0].node[0].attribute.add(name="body", type=5, ref_attr_name="given")
    with pytest.raises(ModelError, match="takes a graph from the caller"):
        load(model)


LONG = 2**33
"""Elements that a model of a few bytes asks for."""

LARGE = {
    "ConstantOfShape": "<int64[1] d = {%d}> { c = ConstantOfShape <value = float[1] {1.5}> (d) y = Mul(x, c) }",
    "overflow": """<int64[2] d = {4294967296, 4294967296}> {
        c = ConstantOfShape <value = float[1] {1.5}> (d) s = ReduceSum <keepdims = 0> (c) y = Mul(x, s) }""",
    "Range": """<int64 a = {0}, int64 b = {%d}, int64 c = {1}> {
        r = Range(a, b, c) f = Cast <to = 1> (r) y = Mul(x, f) }""",
    "computed": """<int64 a = {0}, int64 b = {%d}, int64 c = {1}> {
        e = Mul(b, c) r = Range(a, e, c) f = Cast <to = 1> (r) y = Mul(x, f) }""",
    "Expand": "<float[1] w = {1.0}, int64[1] d = {%d}> { r = Expand(w, d) y = Mul(x, r) }",
    "Tile": "<float[2] w = {1.0, 2.0}, int64[1] d = {%d}> { r = Tile(w, d) y = Mul(x, r) }",
    "Pad": "<float[2] w = {1.0, 2.0}, int64[2] d = {0, %d}> { r = Pad(w, d) y = Mul(x, r) }",
    "Resize": "<float[1,2] w = {1.0, 2.0}, int64[2] d = {1, %d}> { r = Resize(w,,,d) y = Mul(x, r) }",
    "Gather": """<int64[1] d = {%d}, int64[1] i = {1}> {
        c = ConstantOfShape <value = float[1] {1.5}> (d) g = Gather(c, i) y = Mul(x, g) }""",
    "product": """<int64[1] a = {1000}, int64[1] b = {20000}> {
        m = Mul(a, b) c = ConstantOfShape <value = float[1] {1.5}> (m) i = Cast <to = 7> (c) j = Add(i, i)
        f = Cast <to = 1> (j) y = Mul(x, f) }""",
    "doubled": """<int64[1] a = {1000}, int64[1] two = {2}> {
        m = Mul(a, a) c = ConstantOfShape <value = int64[1] {1}> (m) d = Concat <axis = 0> (c, c, c, c)
        e = Concat <axis = 0> (d, d, d, d) g = Mul(e, two) f = Cast <to = 1> (g) y = Mul(x, f) }""",
    "flattened": """<int64[2] a = {70, 70}, int64[1] one = {-1}> {
        m = Mul(a, a) c = ConstantOfShape <value = int64[1] {1}> (m) d = Reshape(c, one) g = Add(d, d)
        f = Cast <to = 1> (g) y = Mul(x, f) }""",
    "branch": """<int64[1] d = {%d}, bool b = {1}> {
        s = ReduceSum <keepdims = 0> (x) t = Cast <to = 9> (s)
        y = If(t) <then_branch = a () => (float[m] o) {
                       k = ConstantOfShape <value = float[1] {1.5}> (d) o = Mul(x, k) },
                   else_branch = e () => (float[m] p) { p = Identity(x) }> }""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is set in a process of its own")
def test_small_models_do_not_fill_the_memory() -> None:
    """Each is inspected and optimized with no more than 400 MiB beside what the process has."""
    import resource

    from normfuse.inspection import inspect

    models = {
        name: onnx.parser.parse_model(
            HEAD + "(float[2] x) => (float[m] y) " + (text % LONG if "%d" in text else text)
        ).SerializeToString()
        for name, text in LARGE.items()
    }

    def work() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20, size + 400 * 2**20))
        for data in models.values():
            inspect(data)
            optimize(data, "cpu", verify=False)

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how large a process is")
    from scripts.faults import forked, status_of

    assert status_of(forked(work)) == 0


def test_lowerings_make_no_huge_constants() -> None:
    """InstanceNormalization over 2⁴⁰ places has a form with a vector of as many ones: it is refused."""
    text = f"(float[1,2,{2**40}] x) => (float[1,2,{2**40}] y) <float[2] s = {{1.0, 2.0}}, float[2] b = {{0.5, 1.0}}>"
    model = onnx.parser.parse_model(f"{HEAD} {text} {{ y = InstanceNormalization(x, s, b) }}")
    for target in ("cpu", "portable", "cuda"):
        result = optimize(model, target, verify=False).model
        assert sum(math.prod(tensor.dims) for tensor in result.graph.initializer) < 100


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = at("w.bin", tmp_path, as_attribute=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"w.bin", b"w.b\x85n"))
    with pytest.raises(ModelError, match="UTF-8"):
        load(path)
    with pytest.raises(ModelError, match="UTF-8"):
        load(data.replace(b"custom", b"cust\x85m"))
