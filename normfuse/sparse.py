"""Sparse tensors, which onnx_ir cannot hold: kept as they are where that can be done, made dense elsewhere.

A sparse initializer of the main graph becomes a `SparseTensor`, which is dense when someone reads it and is written
sparse again as long as nobody replaces it. Those of subgraphs, and the `sparse_value` of a Constant node, become dense.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir

from normfuse.errors import ModelError
from normfuse.outline import proto_graphs, proto_nodes

LARGEST = 2**31
"""Bytes that a sparse tensor may have when it is made dense."""


class SparseTensor(ir.LazyTensor):
    """A sparse tensor that reads as a dense one.

    Attributes:
        proto: the sparse tensor: values (nnz,), indices (nnz,) int64 into the flat tensor or (nnz, rank) int64.
    """

    __slots__ = ("proto",)

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        super().__init__(
            lambda: ir.Tensor(dense(proto)),
            ir.DataType(proto.values.data_type),
            ir.Shape(proto.dims),
            cache=True,
            name=proto.values.name,
            doc_string=proto.values.doc_string or None,
        )
        self.proto = proto


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The array (*dims) that a sparse tensor stands for.

    Raises:
        ModelError: its parts contradict one another, or it would be larger than `LARGEST`.
    """
    name, dims = sparse.values.name, tuple(sparse.dims)
    if min(dims, default=0) < 0 or len(sparse.values.dims) != 1:
        raise ModelError(
            f"sparse tensor {name!r} has the shape {dims} and values of shape {tuple(sparse.values.dims)}, where sizes "
            "and a list of values are expected; export the model again"
        )
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices).astype(np.int64, copy=False)
    except Exception as error:
        raise ModelError(f"sparse tensor {name!r} cannot be read ({error}); export the model again") from error
    if math.prod(dims) * values.dtype.itemsize > LARGEST:
        raise ModelError(f"sparse tensor {name!r} of shape {dims} is too large to be made dense; store it as parts")
    array = np.zeros(dims, values.dtype)
    linear = indices.ndim == 1
    limits = np.array([array.size] if linear else dims)
    if len(indices) != len(values) or indices.ndim > 2 or not indices.ndim:
        raise ModelError(
            f"sparse tensor {name!r} has {len(values)} values and indices of shape {indices.shape}; "
            "export the model again"
        )
    columns = indices.reshape(len(values), 1 if linear else indices.shape[1])
    if columns.shape[1] != len(limits) or (columns < 0).any() or (columns >= limits).any():
        raise ModelError(f"sparse tensor {name!r} has indices outside its shape {dims}; export the model again")
    if linear:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(columns.T)] = values
    return array


def take_sparse(model: onnx.ModelProto) -> list[SparseTensor]:
    """Takes the sparse tensors out of a model, in place.

    Returns:
        The sparse initializers of the main graph; an empty initializer holds the place of each in the model.
    """
    for proto in model.graph.sparse_initializer:
        dense(proto)  # says what is wrong with one
    kept = [SparseTensor(proto) for proto in model.graph.sparse_initializer]
    for tensor in kept:
        model.graph.initializer.add(name=tensor.name, dims=tensor.proto.dims, data_type=tensor.dtype.value)
    del model.graph.sparse_initializer[:]
    for graph in proto_graphs(model):
        graph.initializer.extend(_dense_proto(sparse) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in proto_nodes(model):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                attribute.t.CopyFrom(_dense_proto(attribute.sparse_tensor))
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.ClearField("sparse_tensor")
    return kept


def put_sparse(graph: onnx.GraphProto, tensors: Mapping[str, onnx.SparseTensorProto]) -> None:
    """Puts sparse initializers back into a graph, in place of the initializers of their names."""
    for name, tensor in tensors.items():
        index = next(i for i, initializer in enumerate(graph.initializer) if initializer.name == name)
        del graph.initializer[index]
        graph.sparse_initializer.add().CopyFrom(tensor)
        graph.sparse_initializer[-1].values.name = name


def _dense_proto(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(dense(sparse), sparse.values.name)
