"""What a model looks like without its numbers: operators, names and scopes, and the ways to walk over them.

An `Outline` is the same for an `onnx.ModelProto` and an `onnx_ir.Model`, so `normfuse.validation` has one set of rules.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from normfuse.errors import ModelError

_UNDEFINED = onnx.AttributeProto.UNDEFINED
_GRAPH = onnx.AttributeProto.GRAPH
_GRAPHS = onnx.AttributeProto.GRAPHS
_SPARSE_TENSOR = onnx.AttributeProto.SPARSE_TENSOR


@dataclass(frozen=True, slots=True)
class Step:
    """A node: its operator, the names it reads and writes, and the graphs in its attributes."""

    domain: str
    op_type: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    blocks: "tuple[Block, ...]"

    def __str__(self) -> str:
        if self.name:
            return f"node {self.name!r} ({self.op_type})"
        return f"the {self.op_type} node" + (f" that writes {self.writes[0]!r}" if self.writes else "")


@dataclass(frozen=True, slots=True)
class Block:
    """A graph, a subgraph or the body of a function."""

    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]

    def all_steps(self) -> Iterator[Step]:
        """The nodes of this graph and of those in its attributes."""
        for step in self.steps:
            yield step
            for inner in step.blocks:
                yield from inner.all_steps()


@dataclass(frozen=True, slots=True)
class Routine:
    """A model-local function: its domain and name, what it imports, and its body."""

    domain: str
    name: str
    opsets: Mapping[str, int]
    body: Block


@dataclass(frozen=True, slots=True)
class Outline:
    """What a model looks like without its numbers; `sparse` tells whether some of those are sparse tensors."""

    ir_version: int
    opsets: Mapping[str, int]
    graph: Block
    routines: tuple[Routine, ...]
    sparse: bool = False

    @classmethod
    def of_proto(cls, model: onnx.ModelProto) -> "Outline":
        """Reads the outline of an `onnx.ModelProto`."""
        reader = _ProtoReader()
        graph = reader.block(model.graph)
        routines = []
        names = [(function.domain, function.name, function.overload) for function in model.functions]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"function {twice[1]!r} is defined twice; keep one of them")
        for function in model.functions:
            steps = tuple(reader.step(node) for node in function.node)
            body = Block(_text(function.input), (), _text(function.output), steps)
            routines.append(Routine(_domain(function.domain), function.name, _opsets(function.opset_import), body))
        opsets = _opsets(model.opset_import) or ({"": 1} if model.ir_version < 3 else {})
        return cls(model.ir_version, opsets, graph, tuple(routines), reader.sparse)

    @classmethod
    def of_ir(cls, model: ir.Model) -> "Outline":
        """Reads the outline of an `onnx_ir.Model`."""
        return cls(
            model.ir_version,
            {_domain(name): version for name, version in model.opset_imports.items()},
            _block_of_ir(model.graph),
            tuple(
                Routine(function.domain, function.name, function.opset_imports, _block_of_ir(function.graph))
                for function in model.functions.values()
            ),
        )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _text(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they are; protobuf gives what is not UTF-8 as bytes."""
    names = tuple(names)
    if bytes in map(type, names):
        raise ModelError(f"a name in it is not UTF-8, near {names[0]!r}; the file is damaged, fetch or export it again")
    return names


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        _text([entry.domain])
        if opsets.setdefault(_domain(entry.domain), entry.version) != entry.version:
            raise ModelError(
                f"the domain {entry.domain or 'ai.onnx'!r} is imported in versions {opsets[_domain(entry.domain)]} and "
                f"{entry.version}; keep one of them"
            )
    return opsets


class _ProtoReader:
    """Reads the blocks of an `onnx.ModelProto`; `sparse` tells whether it met a sparse tensor."""

    def __init__(self) -> None:
        self.sparse = False

    def block(self, graph: onnx.GraphProto) -> Block:
        self.sparse = self.sparse or bool(graph.sparse_initializer)
        constants = [tensor.name for tensor in graph.initializer]
        constants += [tensor.values.name for tensor in graph.sparse_initializer]
        inputs = [value.name for value in graph.input]
        outputs = [value.name for value in graph.output]
        return Block(_text(inputs), _text(constants), _text(outputs), tuple(self.step(node) for node in graph.node))

    def step(self, node: onnx.NodeProto) -> Step:
        blocks = []
        if len({attribute.name for attribute in node.attribute}) < len(node.attribute):
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) has two attributes of one name; export the model again"
            )
        for attribute in node.attribute:
            kind = attribute.type
            if kind in (_GRAPH, _GRAPHS) and attribute.ref_attr_name:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) takes a graph from the caller of its function, which is not "
                    "supported; inline the functions of the model"
                )
            if kind == _GRAPH:
                blocks.append(self.block(attribute.g))
            elif kind == _GRAPHS:
                blocks.extend(map(self.block, attribute.graphs))
            elif kind == _SPARSE_TENSOR:
                self.sparse = True
            elif kind == _UNDEFINED and not attribute.ref_attr_name:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) has an attribute {attribute.name!r} without a type; "
                    "export the model again"
                )
        domain, op_type, name = _text((node.domain, node.op_type, node.name))
        return Step(_domain(domain), op_type, name, _text(node.input), _text(node.output), tuple(blocks))


def _block_of_ir(graph: ir.Graph) -> Block:
    return Block(
        tuple(value.name or "" for value in graph.inputs),
        tuple(graph.initializers),
        tuple(value.name or "" for value in graph.outputs),
        tuple(
            Step(
                node.domain,
                node.op_type,
                node.name or "",
                tuple("" if value is None else value.name or "" for value in node.inputs),
                tuple(value.name or "" for value in node.outputs),
                tuple(_blocks_of_ir(node)),
            )
            for node in graph
        ),
    )


def _blocks_of_ir(node: ir.Node) -> Iterator[Block]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield _block_of_ir(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from map(_block_of_ir, attribute.as_graphs())


def ir_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """All graphs of a model: the main one, its subgraphs, the bodies of functions and theirs."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def proto_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph of a model and all subgraphs, those in functions too."""
    yield model.graph
    yield from _subgraphs(model.graph.node)
    for function in model.functions:
        yield from _subgraphs(function.node)


def proto_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model, those in subgraphs and functions too."""
    for graph in proto_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def external_files(model: onnx.ModelProto, folder: str) -> set[str]:
    """Paths of the files that hold external data of a model which lies in `folder`."""
    held = [tensor for graph in proto_graphs(model) for tensor in graph.initializer]
    held += [attribute.t for node in proto_nodes(model) for attribute in node.attribute if attribute.HasField("t")]
    return {
        os.path.join(folder, entry.value)
        for tensor in held
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == _GRAPH:
                graphs: Iterable[onnx.GraphProto] = (attribute.g,)
            elif attribute.type == _GRAPHS:
                graphs = attribute.graphs
            else:
                continue
            for graph in graphs:
                yield graph
                yield from _subgraphs(graph.node)
