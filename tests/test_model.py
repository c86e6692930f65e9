import errno
import mmap
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from google.protobuf.message import Message  # type: ignore[import-untyped]  # it ships no types
from onnx import TensorProto, helper, numpy_helper

from normfuse import serialization, storage
from normfuse.errors import ModelError, NormfuseError
from normfuse.model import check_output, load, restore_kind, save, serialize

RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(2.0, 3.0, (64, 8)).astype(np.float32)


def small() -> onnx.ModelProto:
    """A model with one of everything that must survive."""
    model = onnx.parser.parse_model("""
        <ir_version: 11, opset_import: ["" : 21, "custom" : 3], domain: "here", model_version: 7,
         producer_name: "me", producer_version: "1.2", doc_string: "a model">
        g (bool c, float[batch, 64] x) => (float[batch, 8] y) {
            k = Constant <value = float[2] {1.5, 2.5}> ()
            [mul] t = MatMul(x, w)
            u = If(c) <then_branch = g1 () => (float[n, 8] a) { a = Relu(t) },
                       else_branch = g2 () => (float[n, 8] b) { b = custom.Any <mode: string = "x"> (t, k) }>
            y = custom.f(u)
        }
        <domain: "custom", opset_import: ["" : 21], doc_string: "a function"> f (a) => (b) { b = Neg(a) }
    """)
    graph = model.graph
    graph.doc_string = "a graph"
    graph.input[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.node[1].doc_string = "a node"
    graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch", 8], "a value"))
    for holder in (model, graph, graph.node[1], graph.input[0], graph.value_info[0], model.functions[0]):
        holder.metadata_props.add(key="who", value=type(holder).__name__)
    graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    graph.initializer[0].doc_string = "a tensor"
    graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0]))
    graph.initializer.append(numpy_helper.from_array(np.array(["a", "é"], object), "strings"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "none"))
    graph.initializer.append(numpy_helper.from_array(np.array(3, np.int64), "scalar"))
    for name in ("bfloat16", "float8_e4m3fn", "int4", "uint4"):
        array = np.arange(5).astype(getattr(ml_dtypes, name))
        graph.initializer.append(numpy_helper.from_array(array, name))
    annotation = graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scalar")
    return model


def constant(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what is only spelled differently is equal: where a tensor keeps its numbers."""
    model, source = onnx.ModelProto(), model
    model.CopyFrom(source)
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        plain = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        plain.doc_string = tensor.doc_string
        tensor.CopyFrom(plain)
    clear_empty(model)
    return model


def clear_empty(message: Message) -> None:
    """Empty strings that are set and strings that are not set mean the same."""
    for field, value in message.ListFields():
        if isinstance(value, Message):
            clear_empty(value)
        elif isinstance(value, str):
            if not value:
                message.ClearField(field.name)
        elif field.message_type is not None:
            for item in value:
                clear_empty(item)


def test_everything_survives(tmp_path: Path) -> None:
    model = small()
    before = model.SerializeToString(deterministic=True)
    (tmp_path / "in.onnx").write_bytes(before)
    for source in (tmp_path / "in.onnx", str(tmp_path / "in.onnx"), before, model, ir.from_proto(model)):
        save(load(source), tmp_path / "out.onnx")
        assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(model)
    assert model.SerializeToString(deterministic=True) == before


def test_initializers_that_are_inputs_stay_inputs() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "old",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([3.0, 4.0], np.float32), "w")],
    )
    model = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 9)])
    assert canonical(restore_kind(load(model), model)) == canonical(model)


@pytest.mark.parametrize("kind", ["proto", "ir"])
def test_source_stays_as_it_is(kind: str) -> None:
    proto = small()
    source = proto if kind == "proto" else ir.from_proto(proto)
    before = canonical(restore_kind(source, proto) if kind == "ir" else proto).SerializeToString(deterministic=True)
    model = load(source)
    model.graph.initializers["w"].name = "renamed"
    model.graph.inputs[1].dtype = ir.DataType.DOUBLE
    for node in model.graph:
        node.name = f"new_{node.op_type}"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                attribute.as_tensor().name = "renamed"
    model.metadata_props["who"] = "changed"
    after = canonical(restore_kind(source, proto) if kind == "ir" else proto).SerializeToString(deterministic=True)
    assert after == before


def test_clone_shares_numbers() -> None:
    array = np.ones((4, 4), np.float32)
    value = ir.val("w", const_value=ir.Tensor(array, name="w"))
    node = ir.node("Identity", [value])
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20}, name="g")
    source = ir.Model(graph, ir_version=10)
    assert np.shares_memory(constant(load(source), "w"), array)


def test_nodes_are_put_in_order() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { @ }'
    proto = onnx.parser.parse_model(text.replace("@", "y = Neg(t) t = Mul(u, w) u = Relu(x)"))
    for source in (proto, ir.from_proto(proto)):
        assert [node.op_type for node in load(source).graph] == ["Relu", "Mul", "Neg"]


def test_onnx_spelled_out_is_the_default_domain() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx" : 17]> g (float[2] x) => (float[2] y) { y = ai.onnx.Relu(x) }'
    )
    assert load(model).opset_imports == {"": 17}


def sparse_tensor(name: str, linear: bool) -> onnx.SparseTensorProto:
    indices = np.array([1, 5], np.int64) if linear else np.array([[0, 1], [1, 2]], np.int64)
    values = numpy_helper.from_array(np.array([2.0, -3.0], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "indices"), [2, 3])


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_tensors_survive(linear: bool) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y) { t = Add(x, w) y = Add(t, k) }'
    )
    model.graph.sparse_initializer.append(sparse_tensor("w", linear))
    node = helper.make_node("Constant", [], ["k"], sparse_value=sparse_tensor("", linear))
    model.graph.node.insert(0, node)
    before = model.SerializeToString(deterministic=True)
    loaded = load(model)
    expected = np.array([[0, 2, 0], [0, 0, -3]], np.float32)
    np.testing.assert_array_equal(constant(loaded, "w"), expected)
    after = restore_kind(loaded, model)
    assert list(after.graph.sparse_initializer) == list(model.graph.sparse_initializer)
    assert not after.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.node[0].attribute[0].t), expected)
    assert model.SerializeToString(deterministic=True) == before


def test_sparse_index_outside_its_shape() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y) { y = Add(x, w) }'
    )
    model.graph.sparse_initializer.append(sparse_tensor("w", True))
    model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([1, 6]), "indices"))
    with pytest.raises(ModelError, match="'w' has indices outside"):
        load(model)


def test_training_info_and_maps_are_refused() -> None:
    model = small()
    model.training_info.add()
    with pytest.raises(ModelError, match="training_info"):
        load(model)
    model = small()
    model.graph.output[0].type.map_type.key_type = TensorProto.INT64
    with pytest.raises(ModelError, match="Map types are not supported"):
        load(model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello, this is no model\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>", "HTML"),
        (pickle.dumps({"a": 1}, protocol=2), "pickle"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (small().SerializeToString()[:900], "a part of one"),
        (b"\x08\x08", "no graph"),
        (b"\x00\xff\x13\x37" * 9, "no ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 3


def test_torch_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(ModelError, match=r"torch\.onnx\.export"):
        load(tmp_path / "m.pt")


@pytest.mark.parametrize("source", ["absent.onnx", ".", "nul\0l.onnx", "/dev/null", 3, None])
def test_what_cannot_be_read_at_all(source: Any) -> None:
    with pytest.raises(NormfuseError) as caught:
        load(source)
    assert caught.value.exit_status == 2


def with_external(folder: Path, data: bytes) -> Path:
    """A model y = x · w with w in `w.bin`; the model lies in `folder`."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,64] x) => (float[n,8] y) { y = MatMul(x, w) }'
    )
    tensor = model.graph.initializer.add(name="w", dims=WEIGHT.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="offset", value="64")
    (folder / "w.bin").write_bytes(data)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    return folder / "in.onnx"


def test_external_data_stays_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_external(tmp_path, bytes(64) + WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    model = load("in.onnx")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    save(model, "out.onnx")
    assert sorted(os.listdir()) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load("out.onnx").graph.initializer[0]), WEIGHT)
    embedded = restore_kind(model, path)
    np.testing.assert_array_equal(numpy_helper.to_array(embedded.graph.initializer[0]), WEIGHT)
    assert onnx.load_from_string(serialize(model)) == embedded


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    path = with_external(tmp_path, bytes(100))
    with pytest.raises(ModelError, match=r"in\.onnx: .*w\.bin has 100 bytes where 2,112 are expected"):
        load(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"no file .*w\.bin \(2,112 bytes expected\)"):
        load(path)


def test_overwriting_a_model_with_external_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = load(with_external(source, bytes(64) + WEIGHT.tobytes()))
    out = tmp_path / "out.onnx"
    (tmp_path / "stranger.data").write_bytes(b"1")
    for _ in range(3):
        save(model, out)
    data = [path for path in tmp_path.iterdir() if path.name.startswith("out.onnx.")]
    assert len(data) == 1
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(out).graph.initializer[0]), WEIGHT)
    assert (tmp_path / "stranger.data").exists()


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("external", [True, False], ids=["external", "whole"])
def test_data_that_a_copy_reads_outlives_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, readable: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = load(with_external(source, bytes(64) + WEIGHT.tobytes()))
    out, copy = tmp_path / "c.onnx", tmp_path / "sibling.onnx"
    save(model, out)
    copy.write_bytes(out.read_bytes())
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "link.onnx").symlink_to(out)
    if not readable:

        def refuse(*arguments: Any, **settings: Any) -> None:
            raise OSError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(mmap, "mmap", refuse)
    save(model if external else small(), out)
    assert (tmp_path / "c.onnx.data").exists()
    monkeypatch.undo()
    np.testing.assert_array_equal(constant(load(copy), "w"), WEIGHT)
    copy.unlink()
    save(model, out)
    save(model, out)  # nobody else reads what the last one wrote
    assert len(list(tmp_path.glob("c.onnx*.data"))) <= 2


def test_data_in_use_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save(load(with_external(source, bytes(64) + WEIGHT.tobytes())), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    save(model, tmp_path / "m.onnx")
    np.testing.assert_array_equal(constant(model, "w"), WEIGHT)
    np.testing.assert_array_equal(constant(load(tmp_path / "m.onnx"), "w"), WEIGHT)


def test_large_models_use_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGEST", 2000)
    model = small()
    for given in (model, load(model)):
        save(given, tmp_path / "m.onnx")
        assert canonical(onnx.load(tmp_path / "m.onnx")) == canonical(model)
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".data"] != []
    with pytest.raises(ModelError, match="2 GiB"):
        serialize(load(model))


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_nothing_is_left_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, step: str, call: int
) -> None:
    model = load(with_external(tmp_path, bytes(64) + WEIGHT.tobytes()))
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    real = getattr(os, step)
    calls: list[tuple[Any, ...]] = []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise failure
        return real(*args)

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(NormfuseError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        save(model, out)
    assert sorted(os.listdir(tmp_path)) == before
    assert out.read_bytes() == b"old"
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value)


def test_permissions_follow_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save(small(), tmp_path / "m.onnx")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == 0o640


def test_output_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"1")
    check_output(tmp_path / "new.onnx", None)
    check_output(tmp_path / "file", None)
    for path, words in {
        "absent/m.onnx": "no folder",
        "file/m.onnx": "no folder",
        ".": "it is a folder",
        "": "no path",
        "a\0b": "no path",
        "/dev/null": "no regular file",
    }.items():
        monkeypatch.chdir(tmp_path)
        with pytest.raises(NormfuseError, match=words):
            check_output(path, None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NormfuseError, match="read-only"):
        check_output(tmp_path / "new.onnx", None)


def test_output_is_not_the_input(tmp_path: Path) -> None:
    path = with_external(tmp_path, bytes(64) + WEIGHT.tobytes())
    (tmp_path / "symbolic.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for name in ("in.onnx", "symbolic.onnx", "hard.onnx"):
        with pytest.raises(NormfuseError, match="is the input"):
            check_output(tmp_path / name, path)
    for source in (path, load(path)):
        with pytest.raises(NormfuseError, match="external data of the input"):
            check_output(tmp_path / "w.bin", source)
    (tmp_path / "other.onnx").write_bytes(b"1")
    check_output(tmp_path / "other.onnx", path)


def test_kinds_are_restored(tmp_path: Path) -> None:
    proto = small()
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = load(proto)
    assert isinstance(restore_kind(model, tmp_path / "m.onnx"), onnx.ModelProto)
    assert isinstance(restore_kind(model, proto), onnx.ModelProto)
    assert canonical(onnx.load_from_string(restore_kind(model, proto.SerializeToString()))) == canonical(proto)
    assert restore_kind(model, ir.from_proto(proto)) is model


def test_torch_programs() -> None:
    torch_onnx = pytest.importorskip("torch.onnx")
    source = torch_onnx.ONNXProgram(ir.from_proto(small()), None)
    result = restore_kind(load(source), source)
    assert type(result) is torch_onnx.ONNXProgram
    assert result.model is not source.model
    assert canonical(result.model_proto).graph.node == canonical(small()).graph.node


def test_torch_is_not_imported() -> None:
    code = "import sys, normfuse.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_data_file_is_aligned(tmp_path: Path) -> None:
    values = [ir.val(f"w{i}", const_value=ir.Tensor(WEIGHT + i, name=f"w{i}")) for i in range(3)]
    node = ir.node("Sum", values)
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 20}, name="g")
    serialization.write_external(ir.Model(graph, ir_version=10), str(tmp_path / "m.onnx"))
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = [int(entry.value) for t in proto.graph.initializer for entry in t.external_data if entry.key == "offset"]
    assert offsets == [0, 4096, 8192]
    loaded = load(tmp_path / "m.onnx")
    for i in range(3):
        np.testing.assert_array_equal(constant(loaded, f"w{i}"), WEIGHT + i)
