"""Lowerings: every rewrite computes what the operator did, on ONNX Runtime, and refuses what it does not know."""

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes import PostconditionError, PreconditionError

from seqrt.exporter.passes import (
    LOWERINGS,
    ConstantShapes,
    ExpandSwish,
    FoldRows,
    GatherHalves,
    GatherRows,
    Lowering,
    PrimitiveAttention,
    PrimitiveNorm,
    PrimitiveRotary,
    ScatterCache,
    fix_dimension,
    turn_weights,
)
from seqrt.exporter.rewriting import Site
from seqrt.runtime.bundle import CHUNK

Array = npt.NDArray[np.generic]
Pair = tuple[ort.InferenceSession, ort.InferenceSession]

HEADER = '<ir_version: 11, opset_import: ["" : 24]>'
SEEDS = st.integers(0, 2**32 - 1)
HEADS = [(4, 2, 16), (9, 3, 64), (2, 2, 8), (3, 1, 20)]  # of queries, of keys, width
PASSES: list[type[Lowering]] = [*LOWERINGS.values(), FoldRows, GatherHalves, GatherRows, ConstantShapes]


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEADER + text)))


def session(made: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def kinds(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


@cache
def pair(lowering: type[Lowering], text: str) -> Pair:
    """The graph before and after."""
    made = model(text)
    before = session(made)
    lowering()(made)
    assert not lowering.replaces or lowering.op_type not in kinds(made)
    return before, session(made)


def assert_same(made: Pair, feeds: dict[str, Array], *, tolerance: float = 1e-5) -> None:
    expected, found = (each.run(None, feeds) for each in made)
    assert [value.name for value in made[0].get_outputs()] == [value.name for value in made[1].get_outputs()]
    for one, other in zip(expected, found, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(other, one, atol=tolerance, rtol=tolerance)


def attention_text(num_q: int, num_kv: int, width: int) -> str:
    """Two layers with one mask."""
    return f"""g (float[1, {num_q}, T, {width}] q, float[1, {num_kv}, C, {width}] k, float[1, {num_kv}, C, {width}] v,
float[1, 1, T, C] mask) => (float[1, {num_q}, T, {width}] y, float[1, {num_q}, T, {width}] z)
{{
    y = Attention<scale = 1.0>(q, k, v, mask)
    z = Attention<scale = 1.0>(y, k, v, mask)
}}"""


@pytest.mark.parametrize("lowering", [FoldRows, PrimitiveAttention])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows", [1, 2, CHUNK - 1, CHUNK, CHUNK + 9])
def test_attention(lowering: type[Lowering], heads: tuple[int, int, int], rows: int) -> None:
    (num_q, num_kv, width), rng = heads, np.random.default_rng(rows)
    made = pair(lowering, attention_text(*heads))
    for capacity in (1, 7, 200):
        seen = rng.random((1, 1, rows, capacity)) < 0.6
        seen[..., 0] = True
        shapes = {"q": (num_q, rows), "k": (num_kv, capacity), "v": (num_kv, capacity)}
        feeds: dict[str, Array] = {
            name: rng.standard_normal((1, *shape, width)).astype(np.float32) for name, shape in shapes.items()
        }
        feeds["q"] = feeds["q"].astype(np.float32) / np.float32(width**0.5)  # products of order one
        assert_same(made, feeds | {"mask": np.where(seen, 0, -np.inf).astype(np.float32)})


def test_layers_share_what_is_made_of_a_mask() -> None:
    made = model(attention_text(2, 2, 8))
    FoldRows()(made)
    assert (kinds(made).count("Expand"), kinds(made).count("Attention"), kinds(made).count("Less")) == (1, 2, 1)


ROTARY = """g (float[1, {heads}, T, {width}] x, float[1, 3, T, {width}] other, float[1, T, {half}] cos,
float[1, T, {half}] sin) => (float[1, {heads}, T, {width}] y, float[1, 3, T, {width}] z)
{{
    y = RotaryEmbedding(x, cos, sin)
    z = RotaryEmbedding(other, cos, sin)
}}"""


@settings(max_examples=20)
@given(st.sampled_from([(1, 2), (4, 12), (9, 64)]), st.integers(1, 20), SEEDS)
def test_rotary(heads: tuple[int, int], rows: int, seed: int) -> None:
    (count, width), rng = heads, np.random.default_rng(seed)
    angle = rng.uniform(-4, 4, (1, rows, width // 2))
    feeds: dict[str, Array] = {
        "x": rng.standard_normal((1, count, rows, width)).astype(np.float32),
        "other": rng.standard_normal((1, 3, rows, width)).astype(np.float32),
        "cos": np.cos(angle).astype(np.float32),
        "sin": np.sin(angle).astype(np.float32),
    }
    assert_same(pair(PrimitiveRotary, ROTARY.format(heads=count, width=width, half=width // 2)), feeds)


NORMS = """g (float[1, T, {width}] x, float[{width}] a, float[{width}] b)
=> (float[1, T, {width}] y, float[1, T, {width}] z, float[1, T, {width}] w)
{{
    y = RMSNormalization<axis = -1>(x, a)
    z = RMSNormalization<epsilon = 0.1>(y, b)
    w = RMSNormalization<epsilon = 0.1>(x, b)
}}"""


@settings(max_examples=20)
@given(st.sampled_from([1, 6, 64]), st.integers(1, 9), st.floats(-4, 3), SEEDS)
def test_norms(width: int, rows: int, magnitude: float, seed: int) -> None:
    """Two of three have the same epsilon; small values tell it from others."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {
        "x": (10**magnitude * rng.standard_normal((1, rows, width))).astype(np.float32),
        "a": rng.standard_normal(width).astype(np.float32),
        "b": rng.standard_normal(width).astype(np.float32),
    }
    assert_same(pair(PrimitiveNorm, NORMS.format(width=width)), feeds)


def test_norms_share_constants() -> None:
    made = model(NORMS.format(width=8))
    PrimitiveNorm()(made)
    constants = [value.const_value for value in made.graph.initializers.values()]
    values = sorted(float(each.numpy().flat[0]) for each in constants if each is not None)
    assert values == pytest.approx([-1, 1e-5, 0.1])


def test_norms_of_half_precision_compute_in_single() -> None:
    """Squares of what is above 256 overflow in fp16; those of what is below 0.0002 are zero."""
    made = model(NORMS.format(width=8).replace("float", "float16"))
    PrimitiveNorm()(made)
    lowered, rng = session(made), np.random.default_rng(0)
    scales = {name: rng.uniform(0.5, 2, 8).astype(np.float16) for name in "ab"}
    for magnitude in (1e-4, 1.0, 3e4):
        x = (magnitude * rng.uniform(-1, 1, (1, 5, 8))).astype(np.float16)
        (y, _, _) = lowered.run(None, {"x": x, **scales})
        exact = x.astype(np.float64)
        exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
        assert y.dtype == np.float16
        np.testing.assert_allclose(y.astype(np.float64), exact * scales["a"], rtol=3e-3, atol=1e-4)


CACHES = """g (float[1, 2, C, 4] key, float[1, 2, C, 4] value, float[1, 3, C, 5] other, float[1, 2, T, 4] k,
float[1, 2, T, 4] v, float[1, 3, T, 5] o, int64[1] write)
=> (float[1, 2, C, 4] keys, float[1, 2, C, 4] values, float[1, 3, C, 5] others)
{
    keys = TensorScatter<axis = 2>(key, k, write)
    values = TensorScatter(value, v, write)
    others = TensorScatter<axis = -2, mode = "linear">(other, o, write)
}"""


@settings(max_examples=40)
@given(st.integers(1, 30), st.data(), SEEDS)
def test_caches(capacity: int, data: st.DataObject, seed: int) -> None:
    rng, rows = np.random.default_rng(seed), data.draw(st.integers(1, capacity))
    feeds: dict[str, Array] = {"write": np.array([data.draw(st.integers(0, capacity - rows))])}
    for names, heads, width in ((("key", "k"), 2, 4), (("value", "v"), 2, 4), (("other", "o"), 3, 5)):
        for name, size in zip(names, (capacity, rows), strict=True):
            feeds[name] = rng.standard_normal((1, heads, size, width)).astype(np.float32)
    assert_same(pair(ScatterCache, CACHES), feeds, tolerance=0)


def test_caches_of_a_shape_share_indices() -> None:
    made = model(CACHES)
    ScatterCache()(made)
    assert (kinds(made).count("Range"), kinds(made).count("ScatterElements")) == (2, 3)


SWISHES = """g (float[N] x) => (float[N] y, float[N] z, float[N] w)
{
    y = Swish(x)
    z = Swish<alpha = 1.702>(x)
    w = Swish<alpha = -0.5>(x)
}"""


@given(st.integers(0, 20), SEEDS)
def test_swish(size: int, seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-30, 30, size).astype(np.float32)
    expected = [x / (1 + np.exp(-alpha * x.astype(np.float64))) for alpha in (1.0, 1.702, -0.5)]
    for one, found in zip(expected, pair(ExpandSwish, SWISHES)[1].run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(found, one, atol=1e-5, rtol=1e-5)


def test_swish_of_half_precision_stays_that() -> None:
    made = model(SWISHES.replace("float[", "float16["))
    ExpandSwish()(made)
    found = session(made).run(None, {"x": np.array([-2, 0, 3], np.float16)})
    assert {value.dtype for value in found} == {np.dtype(np.float16)}
    np.testing.assert_allclose(found[1], [-2 / (1 + np.exp(3.404)), 0, 3 / (1 + np.exp(-5.106))], rtol=2e-3)


HALVES = """g (float[1, T, 12] x) => (float[1, T, 6] a, float[1, T, 6] b)
{
    gate, up = Split<axis = AXIS, num_outputs = 2>(x)
    a = Swish(gate)
    b = Mul(gate, up)
}"""


@pytest.mark.parametrize("axis", ["2", "-1"])
@pytest.mark.parametrize("rows", [1, 5])
def test_halves(axis: str, rows: int) -> None:
    made = pair(GatherHalves, text := HALVES.replace("AXIS", axis))
    assert_same(made, {"x": np.random.default_rng(0).standard_normal((1, rows, 12)).astype(np.float32)}, tolerance=0)
    lowered = model(text)
    GatherHalves()(lowered)
    assert kinds(lowered) == ["Reshape", "Gather", "Gather", "Swish", "Mul"]


ROWS = """g (float[B, 5, 6] table, int64[B, K] place) => (float[B, K, 6] y)
<int64[1] last = {-1}, int64[3] wide = {1, 1, 6}> {
    column = Unsqueeze(place, last)
    repeated = Expand(column, wide)
    y = GatherElements<axis = 1>(table, repeated)
}"""


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 2), (2, 7)])
def test_gather_rows(batch: int, rows: int) -> None:
    generator = np.random.default_rng(rows)
    feeds: dict[str, Array] = {
        "table": generator.standard_normal((batch, 5, 6)).astype(np.float32),
        "place": generator.integers(0, 5, (batch, rows)),
    }
    assert_same(pair(GatherRows, ROWS), feeds, tolerance=0)
    lowered = model(ROWS)
    GatherRows()(lowered)
    assert "GatherND" in kinds(lowered)
    assert "GatherElements" not in kinds(lowered)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2, 5, 6] x, int64[2, 3, 6] i) => (float[2, 3, 6] y) { y = GatherElements<axis = 1>(x, i) }",
        "g (float[5, 6] x, int64[2, 6] i) => (float[2, 6] y) { y = GatherElements(x, i) }",
        ROWS.replace("axis = 1", "axis = 2").replace("wide = {1, 1, 6}", "wide = {1, 1, 1}"),
        ROWS.replace("wide = {1, 1, 6}", "wide = {1, 1, 4}").replace("float[B, K, 6] y", "float[B, K, 4] y"),
    ],
)
def test_gathers_that_are_left(text: str) -> None:
    made = model(text)
    before = kinds(made)
    GatherRows()(made)
    assert kinds(made) == before


RESHAPE = """g (float[B, K, 6] x) => (float[B, K, 2, 3] y) <int64[2] rest = {2, 3}> {
    both = Shape<end = 2>(x)
    shape = Concat<axis = 0>(both, rest)
    y = Reshape<allowzero = 1>(x, shape)
}"""


@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 2, 6), (0, 2, 6)])
def test_constant_shapes(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_same(pair(ConstantShapes, RESHAPE), {"x": x}, tolerance=0)
    lowered = model(RESHAPE)
    ConstantShapes()(lowered)
    assert lowered.graph[-1].inputs[1].producer() is None  # type: ignore[union-attr]


def test_shapes_that_are_left() -> None:
    """A dimension that moves is no zero."""
    made = model(
        "g (float[B, 6, K] x) => (float[6, B, K] y) <int64[1] six = {6}> {"
        "b = Shape<end = 1>(x) k = Shape<start = 2>(x) shape = Concat<axis = 0>(six, b, k) y = Reshape(x, shape) }"
    )
    ConstantShapes()(made)
    assert made.graph[-1].inputs[1].producer() is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1, 4, 8] x) => (float[1, 2, 8] a, float[1, 2, 8] b) { a, b = Split<axis = 1, num_outputs = 2>(x) }",
        "g (float[2, T, 12] x) => (float[1, T, 12] a, float[1, T, 12] b) { a, b = Split<num_outputs = 2>(x) }",
        (
            "g (float[1, 3, T, 12] x) => (float[1, 3, T, 6] a, float[1, 3, T, 6] b)"
            "{ a, b = Split<axis = -1, num_outputs = 2>(x) }"
        ),
        "g (float[T, 12] x) => (float[T, 6] a, float[T, 6] b) { a, b = Split<axis = -1, num_outputs = 2>(x) }",
        (
            "g (float[1, T, 12] x) => (float[1, T, 4] a, float[1, T, 4] b, float[1, T, 4] c)"
            "{ a, b, c = Split<axis = -1, num_outputs = 3>(x) }"
        ),
        (
            "g (float[1, T, 12] x) => (float[1, T, 4] a, float[1, T, 8] b) <int64[2] sizes = {4, 8}>"
            "{ a, b = Split<axis = -1>(x, sizes) }"
        ),
        "g (float[1, T, N] x) => (float[1, T, A] a, float[1, T, B] b) { a, b = Split<axis = -1, num_outputs = 2>(x) }",
    ],
    ids=["rows", "batch", "four axes", "two axes", "thirds", "unequal", "unknown width"],
)
def test_what_is_no_half_of_a_projection_stays(text: str) -> None:
    made = model(text)
    before = ir.to_proto(made).SerializeToString()
    GatherHalves()(made)
    assert ir.to_proto(made).SerializeToString() == before


ATTENTION = "float[1, 4, T, 8] q, float[1, 2, C, 8] k, float[1, 2, C, 8] v, float[1, 1, T, C] mask"
TABLES = "float[1, T, 4] cos, float[1, T, 4] sin"
MISFITS: list[tuple[type[Lowering], str, str, str]] = [
    *(
        (lowering, inputs, body, f"Attention odd with {why}")
        for lowering in (FoldRows, PrimitiveAttention)
        for inputs, body, why in (
            (ATTENTION, "y = Attention<scale = 1.0>(q, k, v)", "3 inputs, 1 outputs and scale 1.0"),
            (ATTENTION, "y = Attention(q, k, v, mask)", "4 inputs, 1 outputs and scale 0.0"),
            (ATTENTION, "y = Attention<scale = 0.5>(q, k, v, mask)", "4 inputs, 1 outputs and scale 0.5"),
            (
                f"{ATTENTION}, float[1, 2, P, 8] pk, float[1, 2, P, 8] pv",
                "y, keys, values = Attention<scale = 1.0>(q, k, v, mask, pk, pv)",
                "6 inputs, 3 outputs and scale 1.0",
            ),
            (
                "float[1, T, 32] q, float[1, C, 16] k, float[1, C, 16] v, float[1, 1, T, C] mask",
                "y = Attention<scale = 1.0, q_num_heads = 4, kv_num_heads = 2>(q, k, v, mask)",
                "inputs that are not 4-D",
            ),
        )
    ),
    (
        PrimitiveRotary,
        f"float[1, 2, T, 8] x, {TABLES}",
        "y = RotaryEmbedding<interleaved = 1>(x, cos, sin)",
        "RotaryEmbedding odd with 3 inputs and ['interleaved'] set",
    ),
    (
        PrimitiveRotary,
        f"float[1, 2, T, 12] x, {TABLES}",
        "y = RotaryEmbedding<rotary_embedding_dim = 8>(x, cos, sin)",
        "RotaryEmbedding odd with 3 inputs and ['rotary_embedding_dim'] set",
    ),
    (
        PrimitiveRotary,
        "float[1, 2, T, 8] x, float[P, 4] cos, float[P, 4] sin, int64[1, T] ids",
        "y = RotaryEmbedding(x, cos, sin, ids)",
        "RotaryEmbedding odd with 4 inputs and [] set",
    ),
    (
        PrimitiveRotary,
        f"float[1, T, 16] x, {TABLES}",
        "y = RotaryEmbedding<num_heads = 2>(x, cos, sin)",
        "RotaryEmbedding odd with 3 inputs and ['num_heads'] set",
    ),
    (
        PrimitiveNorm,
        "float[1, T, 8] x, float[T, 8] scale",
        "y = RMSNormalization<axis = 1>(x, scale)",
        "RMSNormalization odd with axis 1",
    ),
    (
        ScatterCache,
        "float[1, 2, C, 4] past, float[1, 2, C, 4] update, int64[1] write",
        "y = TensorScatter<axis = 1>(past, update, write)",
        "TensorScatter odd with axis 1 and mode linear",
    ),
    (
        ScatterCache,
        "float[1, 2, C, 4] past, float[1, 2, T, 4] update, int64[1] write",
        'y = TensorScatter<mode = "circular">(past, update, write)',
        "TensorScatter odd with axis -2 and mode circular",
    ),
]


@pytest.mark.parametrize(("lowering", "inputs", "body", "message"), MISFITS)
def test_what_does_not_fit_is_named(lowering: type[Lowering], inputs: str, body: str, message: str) -> None:
    """And the graph is as it was."""
    made = ir.from_proto(onnx.parser.parse_model(f"{HEADER} g ({inputs}) => (float y) {{ {body} }}"))
    made.graph[0].name = "odd"
    before = ir.to_proto(made).SerializeToString()
    with pytest.raises(PreconditionError) as caught:
        lowering()(made)
    assert str(caught.value) == f"{lowering.__name__} does not know {message}"
    assert ir.to_proto(made).SerializeToString() == before


def test_one_misfit_among_others_changes_nothing() -> None:
    made = model(NORMS.format(width=8))
    made.graph[1].attributes["axis"] = ir.AttrInt64("axis", 0)
    with pytest.raises(PreconditionError, match=r"^PrimitiveNorm does not know RMSNormalization \S* ?with axis 0$"):
        PrimitiveNorm()(made)
    assert kinds(made) == ["RMSNormalization"] * 3


def test_what_is_left_behind_is_noticed() -> None:
    class Idle(ExpandSwish):
        def lower(self, site: Site, inputs: list[ir.Value]) -> None:
            """Forgets the node."""

    with pytest.raises(PostconditionError, match=r"^Idle left Swish behind$"):
        Idle()(model(SWISHES))


@pytest.mark.parametrize("lowering", PASSES)
def test_operators_of_other_domains_stay(lowering: type[Lowering]) -> None:
    made = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    made.graph[0].op_type, made.graph[0].domain = lowering.op_type, "com.example"
    result = lowering()(made)
    assert not result.modified
    assert kinds(made) == [lowering.op_type]


def product(body: str, weights: str = "float[4, 6] w", outputs: str = "float[1, T, 6] y") -> ir.Model:
    """A graph whose weights, parsed as inputs, become initialisers of random values."""
    made = model(f"g (float[1, T, 4] x, {weights}) => ({outputs}) {{ {body} }}")
    rng = np.random.default_rng(0)
    for value in list(made.graph.inputs)[1:]:
        assert value.shape is not None
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(rng.standard_normal(value.shape.numpy()).astype(np.float32))
        made.graph.register_initializer(value)
    return made


def test_weights_are_turned_once_for_all_products() -> None:
    made = product("y = MatMul(x, w) z = MatMul(x, w)", outputs="float[1, T, 6] y, float[1, T, 6] z")
    before = session(made)
    assert turn_weights(made.graph, ["w"]) == {"w"}
    value = made.graph.initializers["w"]
    assert value.const_value is not None
    assert value.shape == ir.Shape([6, 4])
    value.const_value = ir.tensor(np.ascontiguousarray(value.const_value.numpy().T))
    assert kinds(made) == ["Transpose", "MatMul", "MatMul"]
    x = np.random.default_rng(1).standard_normal((1, 3, 4)).astype(np.float32)
    assert_same((before, session(made)), {"x": x})


def test_matrices_that_are_named_are_turned() -> None:
    made = product("t = MatMul(x, u) s = Add(t, b) y = MatMul(s, w)", "float[4, 4] u, float[4] b, float[4, 6] w")
    assert turn_weights(made.graph, ["b", "u"]) == {"u"}
    assert kinds(made) == ["Transpose", "MatMul", "Add", "MatMul"]


@pytest.mark.parametrize(
    ("body", "weights", "outputs"),
    [
        ("y = MatMul(x, w)", "float[1, 4, 6] w", "float[1, T, 6] y"),
        ("y = MatMul(x, w) z = Add(w, w)", "float[4, 6] w", "float[1, T, 6] y, float[4, 6] z"),
        ("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(w, t)", "float[6, 4] w", "float[1, 6, T] y"),
        ("y = Gather(w, i) z = MatMul(x, w)", "float[4, 6] w", "float[1, T, 6] z, float[2, 6] y"),
        ("y = Gemm(x, w)", "float[4, 6] w", "float[T, 6] y"),
    ],
    ids=["three axes", "another user", "on the left", "gathered too", "Gemm"],
)
def test_what_others_read_is_not_turned(body: str, weights: str, outputs: str) -> None:
    body = f"i = Constant<value = int64[2] {{0, 1}}>() {body}" if "Gather" in body else body
    if "Gemm" in body:
        made = product("y = MatMul(x, w)")
        made.graph[0].op_type = "Gemm"
    else:
        made = product(body, weights, outputs)
    before = ir.to_proto(made).SerializeToString()
    assert turn_weights(made.graph, ["w"]) == set()
    assert ir.to_proto(made).SerializeToString() == before


def test_dimensions_are_fixed_by_name() -> None:
    made = model(CACHES)
    fix_dimension(made.graph, "C", 17)
    fix_dimension(made.graph, "unknown", 3)
    shapes = {str(value.name): list(value.shape or ()) for value in (*made.graph.inputs, *made.graph.outputs)}
    assert shapes["key"] == [1, 2, 17, 4]
    assert shapes["others"] == [1, 3, 17, 5]
    assert shapes["k"] == [1, 2, "T", 4]
    assert shapes["write"] == [1]
    assert session(made).get_inputs()[0].shape == [1, 2, 17, 4]
