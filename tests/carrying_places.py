"""Cases of CARRY: operators that move elements and compute nothing."""

import numpy as np

from tests.carrying import Weights, down, floats, ints, positive, up

_LOST = "the Reshape does not keep the channels on an axis of their own"
_DERIVED = "s = Shape(c) n = Gather(s, zero) u = Concat<axis = 0>(n, rest) t = Reshape(c, u)"

TRANSPOSES = [
    up("transpose", "channels last", "t = Transpose<perm = [0, 2, 3, 1]>(c)", "Mul(t, k)", k=(6,)),
    up("transpose", "default perm", "t = Transpose(c)", "Add(t, k)", k=(6, 1)),
    up("transpose", "one scale", "t = Transpose(c)", "Mul(t, k)", k=(1,)),
    down("transpose", "channels first", "t = Transpose<perm = [0, 3, 1, 2]>(a)", "Mul(x, k)", x="N,9,7,6", k=(6,)),
    down("transpose", "default perm", "t = Transpose(a)", "Mul(x, k)", x="4,5,6,3", k=(6, 1)),
    up(
        "transpose",
        "an axis of the same size",
        "t = Transpose<perm = [0, 2, 1, 3]>(c)",
        reason="the map varies along axis 2, the channels are axis 1",
    ),
    down(
        "transpose",
        "an axis of the same size",
        "t = Transpose<perm = [0, 2, 1, 3]>(a)",
        reason="the map varies along axis 2, the channels are axis 1",
    ),
]

RESHAPES = [
    up("reshape", "-1 for the batch", "t = Reshape(c, s)", s=ints(-1, 6, 42)),
    up("reshape", "0 and -1", "t = Reshape(c, s)", s=ints(0, 0, -1)),
    up("reshape", "shape derived", _DERIVED, zero=ints(0), rest=ints(6, 42), also=("Shape", "Gather", "Concat")),
    up("reshape", "merged with space", "t = Flatten(c)", "Mul(t, k)", k=np.repeat(positive(6), 42)),
    up(
        "reshape",
        "Flatten in the middle",
        "t = Flatten<axis = 2>(c)",
        "Mul(t, k)",
        x="2,3,8,9",
        k=np.tile(positive(6), 2)[:, None],
    ),
    up("reshape", "split into groups", "t = Reshape(c, s)", norm=3, s=ints(0, 3, 2, 42)),
    up(
        "reshape",
        "tokens and back",
        "r = Transpose<perm = [0, 2, 3, 1]>(c) t = Reshape(r, s)",
        s=ints(-1, 6),
    ),
    down("reshape", "Flatten before a Gemm", "t = Flatten(a)", linear="y = Gemm(t, w)", w=(252, 5)),
    down("reshape", "rows to images", "t = Reshape(a, s)", x="N,6,42", s=ints(-1, 6, 6, 7)),
    down("reshape", "vectors to images", "t = Reshape(a, s)", x="N,6", s=ints(0, -1, 1, 1), w=(4, 6, 1, 1)),
    down("reshape", "dynamic space", "t = Reshape(a, s)", x="N,6,H,W", s=ints(0, 0, -1), w=(4, 6, 3)),
    down("reshape", "channels mixed with space", "t = Reshape(a, s)", reason=_LOST, s=ints(0, 7, 6, 6), w=(4, 7, 3, 3)),
    up(
        "reshape",
        "differs within a channel",
        "t = Flatten(c)",
        "Mul(t, k)",
        _LOST,
        k=positive(252),
    ),
]

_POOLED = "m = GlobalAveragePool(c)"

SQUEEZES = [
    up("squeeze", "axes an input", f"{_POOLED} t = Squeeze(m, axes)", axes=ints(-1, 2)),
    up("squeeze", "axes an attribute", f"{_POOLED} t = Squeeze<axes = [2, 3]>(m)", opset=11),
    up("squeeze", "all of size one", f"{_POOLED} t = Squeeze(m)", x="2,3,8,9"),
    up("squeeze", "Unsqueeze in front", "t = Unsqueeze(c, axes)", "Mul(t, k)", axes=ints(1, 0), k=(6, 1, 1)),
    up("squeeze", "Unsqueeze, an attribute", "t = Unsqueeze<axes = [-1]>(c)", opset=11),
    down("squeeze", "Unsqueeze", "t = Unsqueeze(a, axes)", x="N,6", axes=ints(2, 3), w=(4, 6, 1, 1)),
    down("squeeze", "Squeeze", "t = Squeeze(a, axes)", x="N,6,1,1", axes=ints(2, 3), linear="y = Gemm(t, w)", w=(6, 4)),
    down(
        "squeeze",
        "Squeeze in front",
        "t = Squeeze(a, axes)",
        "Mul(x, k)",
        x="1,N,6,7",
        axes=ints(0),
        linear="y = MatMul(t, w)",
        k=(7,),
        w=(7, 4),
    ),
    down(
        "squeeze",
        "whether the batch is squeezed",
        "t = Squeeze(a)",
        reason="which axes it squeezes is known at run time only",
        x="N,6,1,1",
        linear="y = Relu(t)",
    ),
    down(
        "squeeze",
        "axes at run time",
        "t = Unsqueeze(a, axes)",
        reason="its axes are computed at run time",
        inputs=", int64[1] axes",
        linear="y = Relu(t)",
    ),
]

_RANGE: Weights = {"starts": ints(1), "ends": ints(5), "axes": ints(1)}

SLICES = [
    up("slice", "other axes of opset 9", "t = Slice<axes = [2, 3], starts = [1, -3], ends = [5, 99]>(c)", opset=9),
    up("slice", "channels of opset 9", "t = Slice<axes = [1], starts = [-5], ends = [-1]>(c)", opset=9, norm=4),
    up("slice", "no axes", "t = Slice<starts = [0, 2], ends = [9, 6]>(c)", opset=9, norm=4),
    up("slice", "channels", "t = Slice(c, starts, ends, axes)", norm=4, **_RANGE),
    up(
        "slice",
        "every other channel",
        "t = Slice(c, starts, ends, axes, steps)",
        norm=3,
        starts=ints(-6),
        ends=ints(99),
        axes=ints(-3),
        steps=ints(2),
    ),
    up("slice", "rows backwards", "t = Slice(c, s, e, axes, st)", s=ints(-1), e=ints(-99), axes=ints(2), st=ints(-1)),
    up(
        "slice",
        "rows at run time",
        "t = Slice(c, s, e, axes)",
        inputs=", int64[1] s",
        e=ints(5),
        axes=ints(2),
    ),
    down("slice", "channels", "t = Slice(a, starts, ends, axes)", w=(5, 4, 3, 3), **_RANGE),
    down("slice", "rows", "t = Slice(a, starts, ends, axes)", **(_RANGE | {"axes": ints(2)})),
    up(
        "slice",
        "channels backwards",
        "t = Slice(c, s, e, axes, st)",
        reason="it reverses the channels",
        s=ints(-1),
        e=ints(-99),
        axes=ints(1),
        st=ints(-1),
    ),
    down(
        "slice",
        "channels at run time",
        "t = Slice(a, s, e, axes)",
        reason="its starts are computed at run time",
        inputs=", int64[1] s",
        linear="y = Relu(t)",
        e=ints(5),
        axes=ints(1),
    ),
    down(
        "slice",
        "axes at run time",
        "t = Slice(a, s, e, axes)",
        reason="its axes are computed at run time",
        inputs=", int64[1] axes",
        linear="y = Relu(t)",
        s=ints(0),
        e=ints(2),
    ),
]

_PARTS = "y = Conv(t, w) z = Conv(b, v)"

SPLITS = [
    up("split", "one part", "t, b = Split<axis = 1>(c, parts)", norm=4, outputs=", float[] b", parts=ints(4, 2)),
    up("split", "the last part", "b, t = Split<axis = 1>(c, parts)", norm=2, outputs=", float[] b", parts=ints(4, 2)),
    up(
        "split",
        "opset 11",
        "t, b = Split<axis = 1, split = [1, 5]>(c)",
        "Mul(t, k)",
        outputs=", float[] b",
        opset=11,
        k=(1,),
    ),
    up("split", "num_outputs", "t, b = Split<axis = -3, num_outputs = 2>(c)", norm=3, outputs=", float[] b"),
    down(
        "split",
        "channels",
        "t, b = Split<axis = 1>(a, parts)",
        linear=_PARTS,
        outputs="float[] y, float[] z",
        parts=ints(4, 2),
        w=(3, 4, 3, 3),
        v=(3, 2, 3, 3),
    ),
    down(
        "split",
        "rows",
        "t, b = Split<axis = 2, split = [3, 3]>(a)",
        linear=_PARTS,
        outputs="float[] y, float[] z",
        opset=11,
        v=(3, 6, 2, 2),
    ),
    up(
        "split",
        "one part of the rows",
        "t, b = Split<axis = 2, num_outputs = 2>(c)",
        reason="the other parts of the Split would be mapped too",
        outputs=", float[] b",
    ),
    down(
        "split",
        "one part is an output",
        "t, b = Split<axis = 2, num_outputs = 2>(a)",
        reason="'b' is an output of the graph",
        outputs="float[] y, float[] b",
    ),
]

GATHERS = [
    up("gather", "rows", "t = Gather<axis = 2>(c, i)", i=ints(0, 3, 3)),
    up("gather", "one row", "t = Gather<axis = -2>(c, i)", i=np.array(1)),
    up("gather", "one example", "t = Gather(c, i)", "Mul(t, k)", i=np.array(0), k=(6, 1, 1)),
    up("gather", "rows at run time", "t = Gather<axis = 2>(c, i)", inputs=", int64[2] i"),
    up("gather", "examples on two axes", "t = Gather(c, i)", "Mul(t, k)", i=np.array([[0, 0], [0, 0]]), k=(6, 1, 1)),
    down("gather", "channels", "t = Gather<axis = 1>(a, i)", i=ints(5, -2, 0, 0, 1, 3)),
    down(
        "gather",
        "one channel",
        "u = Gather<axis = 1>(a, i) t = Unsqueeze(u, j)",
        i=np.array(2),
        j=ints(1),
        w=(4, 1, 3, 3),
    ),
    down(
        "gather", "one row", "u = Gather<axis = 2>(a, i) t = Unsqueeze(u, j)", i=np.array(2), j=ints(2), w=(4, 6, 1, 3)
    ),
    down(
        "gather",
        "one token of channels last",
        "t = Gather<axis = 1>(a, i)",
        "Mul(x, k)",
        x="N,5,6",
        i=np.array(2),
        linear="y = Gemm(t, w)",
        k=(6,),
        w=(6, 4),
    ),
    up(
        "gather",
        "channels",
        "t = Gather<axis = 1>(c, i)",
        reason="the map varies along the axis that is looked up",
        norm=3,
        without=("gather-after",),
        i=ints(0, 3, 3),
    ),
    up(
        "gather",
        "one channel, rows as many as channels",
        "t = Gather<axis = 1>(c, i)",
        reason="the map varies along axis 2, the channels are axis 1",
        i=np.array(1),
    ),
    down(
        "gather",
        "channels at run time",
        "t = Gather<axis = 1>(a, i)",
        reason="which channels it looks up is computed at run time",
        inputs=", int64[6] i",
    ),
    down(
        "gather",
        "channels on two axes",
        "t = Gather<axis = 1>(a, i)",
        reason="it lays the channels out over several axes",
        linear="y = Relu(t)",
        i=np.array([[0, 1], [2, 3]]),
    ),
    down(
        "gather",
        "the indices",
        "i = Cast<to = 7>(a) t = Gather(table, i)",
        "Mul(x, k)",
        "it casts to or from a dtype that is not floating-point",
        linear="y = Relu(t)",
        k=floats(0.001),
        table=(9, 2),
    ),
]

_STILL = np.concatenate([positive(6), np.ones(2, np.float32)]).reshape(8, 1, 1)

CONCATS = [
    up("concat", "channels", "d = Conv(x, v) t = Concat<axis = 1>(c, d)", norm=10, v=(4, 3, 3, 3)),
    up("concat", "rows", "d = Conv(x, v) t = Concat<axis = -1>(c, d)", v=(6, 3, 3, 3)),
    up("concat", "a part kept still", "t = Concat<axis = 1>(c, z)", "Mul(t, k)", inputs=", float[N,2,6,7] z", k=_STILL),
    down("concat", "channels", "t = Concat<axis = 1>(z, a)", inputs=", float[N,2,6,7] z", w=(4, 8, 3, 3)),
    down(
        "concat",
        "one scale",
        "t = Concat<axis = -3>(a, z)",
        "Mul(x, k)",
        inputs=", float[N,2,6,7] z",
        k=(1,),
        w=(4, 8, 3, 3),
    ),
    up(
        "concat",
        "a part is an input",
        "t = Concat<axis = 1>(c, z)",
        reason="'z' is an input of the graph",
        norm=8,
        inputs=", float[N,2,6,7] z",
    ),
    down(
        "concat",
        "rows",
        "t = Concat<axis = 2>(a, z)",
        reason="the other parts of the Concat are not mapped",
        inputs=", float[N,6,2,7] z",
    ),
]

REPEATS = [
    up("repeat", "Expand", f"{_POOLED} t = Expand(m, s)", s=ints(1, 6, 4, 5)),
    up(
        "repeat",
        "Expand to a higher rank",
        f"{_POOLED} t = Expand(m, s)",
        "Mul(t, k)",
        s=ints(2, 1, 6, 4, 1),
        k=(6, 1, 1),
    ),
    up("repeat", "Tile", "t = Tile(c, r)", r=ints(1, 1, 2, 3)),
    down("repeat", "Expand", "t = Expand(a, s)", x="N,6,1,1", s=ints(6, 4, 5)),
    down("repeat", "Tile", "t = Tile(a, r)", r=ints(2, 1, 2, 1)),
    up("repeat", "one scale, channels tiled", "t = Tile(c, r)", "Mul(t, k)", r=ints(1, 2, 1, 1), k=(1,)),
    up("repeat", "channels tiled", "t = Tile(c, r)", reason="the channels are repeated", norm=12, r=ints(1, 2, 1, 1)),
    down(
        "repeat",
        "channels tiled",
        "t = Tile(a, r)",
        reason="the channels are repeated",
        r=ints(1, 2, 1, 1),
        w=(4, 12, 3, 3),
    ),
]

_TO_SPACE = "t = DepthToSpace<blocksize = 2{}>(c)"
_TO_DEPTH = "t = SpaceToDepth<blocksize = 2>(c)"

DEPTHS = [
    up("depth", "DepthToSpace, DCR", _TO_SPACE.format(""), w=(8, 3, 3, 3), norm=2),
    up("depth", "DepthToSpace, CRD", _TO_SPACE.format(', mode = "CRD"'), w=(8, 3, 3, 3), norm=2),
    down("depth", "SpaceToDepth", "t = SpaceToDepth<blocksize = 2>(a)", x="N,2,6,8", w=(4, 8, 3, 3)),
    up(
        "depth",
        "SpaceToDepth, alike in a block",
        _TO_DEPTH,
        "Mul(t, k)",
        x="N,3,8,8",
        k=np.tile(positive(6), 4).reshape(24, 1, 1),
    ),
    down(
        "depth",
        "DepthToSpace, alike in a block, DCR",
        "t = DepthToSpace<blocksize = 2>(a)",
        "Mul(x, k)",
        x="N,8,3,4",
        k=np.tile(positive(2), 4).reshape(8, 1, 1),
        w=(4, 2, 3, 3),
    ),
    down(
        "depth",
        "DepthToSpace, alike in a block, CRD",
        't = DepthToSpace<blocksize = 2, mode = "CRD">(a)',
        "Mul(x, k)",
        x="N,8,3,4",
        k=np.repeat(positive(2), 4).reshape(8, 1, 1),
        w=(4, 2, 3, 3),
    ),
    down(
        "depth",
        "DepthToSpace, differs in a block",
        "t = DepthToSpace<blocksize = 2>(a)",
        "Mul(x, k)",
        "the map differs within a block",
        x="N,8,3,4",
        k=np.repeat(positive(2), 4).reshape(8, 1, 1),
        w=(4, 2, 3, 3),
    ),
    up(
        "depth",
        "SpaceToDepth, differs in a block",
        _TO_DEPTH,
        "Mul(t, k)",
        "the map differs within a block",
        x="N,3,8,8",
        k=np.repeat(positive(6), 4).reshape(24, 1, 1),
    ),
    up(
        "depth",
        "a map along the rows",
        _TO_SPACE.format(""),
        "Mul(t, k)",
        "the map varies along an axis that is regrouped",
        w=(8, 3, 3, 3),
        k=(12, 1),
    ),
]

PLACES = TRANSPOSES + RESHAPES + SQUEEZES + SLICES + SPLITS + GATHERS + CONCATS + REPEATS + DEPTHS
