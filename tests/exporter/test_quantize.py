"""Quantised weights: what packing keeps, and graphs whose weights were replaced."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import ExportError
from seqrt.exporter.blocks import rewrite
from seqrt.exporter.check import run_exact
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.quantize import BLOCK, as_computed, pack, quantized, require_blocks, round_int8
from seqrt.exporter.store import WeightStore, weight_store
from seqrt.exporter.weights import DecoderWeights

Floats = npt.NDArray[np.float32]


def nearest_int4(matrix: Floats) -> QuantBlocks:
    """Blocks like GGUF's Q4_1: 16 steps from the smallest to the largest weight."""
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    low = blocks.min(-1)
    scale = (blocks.max(-1) - low) / np.float32(15)
    codes = np.rint((blocks - low[..., None]) / np.where(scale == 0, 1, scale)[..., None])
    return QuantBlocks(4, codes.astype(np.uint8).reshape(matrix.shape), scale.astype(np.float32), low)


def random_blocks(rng: np.random.Generator, kind: str, rows: int, width: int) -> QuantBlocks:
    shape = (rows, width // BLOCK)
    scale = rng.uniform(0.01, 1, shape).astype(np.float32)
    if kind == "Q8_0":
        codes = rng.integers(-128, 128, (rows, width)).astype(np.int8)
        return QuantBlocks(8, codes, scale, None)
    codes4 = rng.integers(0, 16, (rows, width)).astype(np.uint8)
    if kind == "Q4_0":  # its scales have the sign of the largest weight
        scale *= rng.choice([-1, 1], shape).astype(np.float32)
        return QuantBlocks(4, codes4, scale, -8 * scale)
    return QuantBlocks(4, codes4, scale, (-scale * rng.uniform(0, 15, shape)).astype(np.float32))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (5, 96), (3, 2048)])
def test_whole_zero_points_are_exact(kind: str, rows: int, width: int) -> None:
    blocks = random_blocks(np.random.default_rng(rows), kind, rows, width)
    packed = pack(blocks)
    assert (packed.bits, packed.num_sums, packed.block) == (blocks.bits, 0, BLOCK)
    assert packed.codes.shape == (width, rows)
    codes = blocks.codes.reshape(rows, -1, BLOCK) - (8.0 if kind == "Q4_0" else 0.0)
    exact = (blocks.scale[..., None].astype(np.float64) * codes).reshape(rows, width)
    np.testing.assert_array_equal(packed.dequantize(), exact.T.astype(np.float32))


def groups(values: Floats) -> Floats:
    """Largest value of each 32 neighbouring blocks, repeated for each of them; `[blocks, out]`."""
    padding = -len(values) % BLOCK
    padded = np.concatenate([values, np.zeros((padding, values.shape[1]), np.float32)])
    largest = padded.reshape(-1, BLOCK, values.shape[1]).max(1)
    return np.repeat(largest, BLOCK, axis=0)[: len(values)]


@pytest.mark.parametrize("spread", ["normal", "laplace", "standard_t"])
@pytest.mark.parametrize(("rows", "width"), [(7, 32), (4, 96), (9, 1024), (2, 1056), (3, 4096)])
def test_fractional_offsets_are_kept_to_a_390th_of_a_step(spread: str, rows: int, width: int) -> None:
    rng = np.random.default_rng(width)
    arguments = (3,) if spread == "standard_t" else ()
    blocks = nearest_int4(getattr(rng, spread)(*arguments, size=(rows, width)).astype(np.float32))
    packed = pack(blocks)
    assert packed.num_sums == width // BLOCK
    assert packed.codes.shape[0] % BLOCK == 0
    error = np.abs(packed.dequantize() - blocks.dequantize().T).reshape(-1, BLOCK, rows).max(1)
    assert (error <= groups(blocks.scale.T) / 390).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    num_blocks=st.integers(1, 70),
    constant=st.floats(0, 1),
    shift=st.floats(-40, 40, width=32),
)
def test_any_offsets_and_blocks_of_one_value(
    seed: int, rows: int, num_blocks: int, constant: float, shift: float
) -> None:
    """Blocks without a spread, and offsets of either sign, far outside the range of a zero point."""
    rng = np.random.default_rng(seed)
    blocks = random_blocks(rng, "Q4_1", rows, num_blocks * BLOCK)
    assert blocks.offset is not None
    blocks.scale[rng.random(blocks.scale.shape) < constant] = 0
    blocks.offset[rng.random(blocks.scale.shape) < 0.5] += np.float32(shift)
    exact, packed = blocks.dequantize().T, pack(blocks)
    assert packed.codes.min() >= 0
    assert packed.codes.max() <= 15
    assert packed.zero is not None
    assert packed.zero.max() <= 15
    zero = np.clip(np.rint(-blocks.offset / np.where(blocks.scale == 0, 1, blocks.scale)), 0, 15)
    residual = np.abs(blocks.offset + zero * blocks.scale).T
    error = np.abs(packed.dequantize() - exact).reshape(-1, BLOCK, rows).max(1)
    assert (error <= groups(residual.astype(np.float32)) / 195 + 1e-5 * np.abs(exact).max()).all()


@pytest.mark.parametrize("seed", range(3))
def test_int8_errs_by_half_a_step_at_most(seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_t(3, (6, 128)).astype(np.float32)
    matrix[0, :BLOCK] = 0
    blocks = round_int8(matrix)
    largest = np.abs(matrix).reshape(6, -1, BLOCK).max(-1)
    error = np.abs(blocks.dequantize() - matrix).reshape(6, -1, BLOCK).max(-1)
    assert (error <= largest / 254 * (1 + 1e-4)).all()
    assert not blocks.dequantize()[0, :BLOCK].any()
    assert blocks.codes.dtype == np.int8
    assert np.abs(blocks.codes.astype(int)).max() == 127


class Source:
    """Parameters by name, as DecoderWeights hands them out."""

    def __init__(self, tensors: dict[str, Floats], blocks: dict[str, QuantBlocks] | None = None) -> None:
        self.tensors, self.kept = tensors, blocks or {}
        self.checkpoint = SimpleNamespace(name="tiny")

    def tensor(self, name: str) -> Floats:
        return self.tensors[name]

    def blocks(self, name: str) -> QuantBlocks | None:
        return self.kept.get(name)

    def is_quantized(self, name: str) -> bool:
        return name in self.kept


def weights(tensors: dict[str, Floats], blocks: dict[str, QuantBlocks] | None = None) -> DecoderWeights:
    return cast(DecoderWeights, Source(tensors, blocks))


PROJECTION = "layers.0.mlp.down.weight"


@pytest.mark.parametrize("spread", ["normal", "laplace", "standard_t"])
def test_int4_errs_less_than_rounding(spread: str) -> None:
    rng = np.random.default_rng(1)
    arguments = (3,) if spread == "standard_t" else ()
    matrix = getattr(rng, spread)(*arguments, size=(256, 96)).astype(np.float32)  # [in, out]
    blocks = quantized(weights({PROJECTION: matrix}), PROJECTION, "int4")
    assert blocks is not None
    assert (blocks.bits, blocks.codes.shape, blocks.scale.shape) == (4, (96, 256), (96, 8))
    assert blocks.codes.max() <= 15
    found, rounded = blocks.dequantize().T, nearest_int4(matrix.T).dequantize().T
    assert ((found - matrix) ** 2).mean() < 0.97 * ((rounded - matrix) ** 2).mean()


def test_which_parameters_are_quantised() -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Floats] = {
        "embed.weight": rng.standard_normal((10, 64)).astype(np.float32),
        "head.weight": rng.standard_normal((10, 64)).astype(np.float32),
        "norm.weight": np.ones(64, np.float32),
        "layers.0.attention.qkv.bias": np.ones(64, np.float32),
        "layers.0.attention.qkv.weight": rng.standard_normal((64, 96)).astype(np.float32),
        "layers.0.mlp.down.weight": rng.standard_normal((40, 64)).astype(np.float32),
    }
    kept = random_blocks(rng, "Q4_1", 96, 64)
    source = weights(tensors, {"layers.0.attention.qkv.weight": kept})

    def bits(method: Any) -> list[int | None]:
        found = [quantized(source, name, method) for name in tensors]
        return [None if blocks is None else blocks.bits for blocks in found]

    assert bits("none") == [None] * 6
    assert bits("int8") == [8, 8, None, None, 8, None], "40 rows are no whole number of blocks"
    assert bits("int4") == [8, 8, None, None, 4, None], "tables stay in 8 bits"
    assert quantized(source, "layers.0.attention.qkv.weight", "source") is kept
    assert bits("source") == [None, None, None, None, 4, None]


def test_source_needs_blocks() -> None:
    tensors: dict[str, Floats] = {PROJECTION: np.ones((64, 64), np.float32)}
    message = r"^--quantize source: tiny has no blocks to keep; use int8, int4 or none$"
    with pytest.raises(ExportError, match=message):
        require_blocks(weights(tensors), [PROJECTION, "embed.weight"])
    blocks = random_blocks(np.random.default_rng(0), "Q8_0", 64, 64)
    require_blocks(weights(tensors, {PROJECTION: blocks}), [PROJECTION])


HIDDEN, WIDE, VOCAB = 64, 96, 50
GRAPH = f"""<ir_version: 11, opset_import: ["" : 24]>
g (int64[1, T] token_ids) => (float[1, T, {HIDDEN}] x, float[1, T, {WIDE}] up, float[R, {VOCAB}] logits)
<float[{VOCAB}, {HIDDEN}] embed.weight, float[{HIDDEN}, {WIDE}] layers.0.mlp.up.weight,
 float[{HIDDEN}, {HIDDEN}] layers.0.attention.o.weight, float[{VOCAB}, {HIDDEN}] head.weight, int64[1] zero = {{0}}>
{{
    x = Gather(embed.weight, token_ids)
    other = MatMul(x, layers.0.attention.o.weight)
    up = MatMul(x, layers.0.mlp.up.weight)
    row = Squeeze(other, zero)
    logits = Gemm<transB = 1>(row, head.weight)
}}"""
SHAPES = {
    "embed.weight": (VOCAB, HIDDEN),
    "layers.0.mlp.up.weight": (HIDDEN, WIDE),
    "layers.0.attention.o.weight": (HIDDEN, HIDDEN),
    "head.weight": (VOCAB, HIDDEN),
}


def original() -> ir.Graph:
    """The graph above; onnx's text form has no names with a dot, so they come in afterwards."""
    text, names = GRAPH, {}
    for i, name in enumerate(SHAPES):
        text, names[f"w{i}"] = text.replace(name, f"w{i}"), name
    proto = onnx.parser.parse_model(text)
    for i, shape in enumerate(SHAPES.values()):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), f"w{i}"))
    del proto.graph.value_info[:]
    graph = ir.from_proto(proto).graph
    for old, new in names.items():
        graph.initializers[old].name = new
    return graph


Opened = Callable[[dict[str, QuantBlocks]], Path]


@pytest.fixture
def rewritten(tmp_path: Path) -> Opened:
    """Rewrites the graph above with the given blocks and saves it."""

    def build(blocks: dict[str, QuantBlocks]) -> Path:
        graph = original()
        with weight_store(tmp_path / "weights.bin") as store:
            rewrite(graph, blocks, lambda name, array, dtype: store.initializer(graph, name, array, dtype))
            save(graph, store, tmp_path / "g.onnx")
        return tmp_path / "g.onnx"

    return build


def save(graph: ir.Graph, store: WeightStore, path: Path) -> None:
    store.close()
    ir.save(ir.Model(graph, ir_version=11), path)


KINDS = ["Q8_0", "Q4_0", "Q4_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_graphs_compute_with_the_packed_weights(rewritten: Opened, kind: str) -> None:
    rng = np.random.default_rng(3)
    blocks = {name: random_blocks(rng, kind, *reversed_projection(name, shape)) for name, shape in SHAPES.items()}
    path = rewritten(blocks)
    ids = rng.integers(0, VOCAB, (1, 7))
    found = run_exact(path, {"token_ids": ids})
    weight = {name: as_computed(name, kept).astype(np.float64) for name, kept in blocks.items()}
    head = pack(blocks["head.weight"]).dequantize().astype(np.float64)
    x = weight["embed.weight"][ids]
    expected = {
        "x": x,
        "up": x @ weight["layers.0.mlp.up.weight"],
        "logits": (x @ weight["layers.0.attention.o.weight"])[0] @ head,
    }
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name].astype(np.float64), value, atol=1e-5 * np.abs(value).max())


def reversed_projection(name: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Blocks are `[out, in]`; graphs hold projections as `[in, out]` and tables as they are."""
    return shape[::-1] if name.startswith("layers.") else shape


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_graphs_are_standard(rewritten: Opened, kind: str) -> None:
    rng = np.random.default_rng(4)
    blocks = {name: random_blocks(rng, kind, *reversed_projection(name, shape)) for name, shape in SHAPES.items()}
    path = rewritten(blocks)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") == 4
    assert "Gemm" not in kinds
    sums = kinds.count("ReduceSum")
    assert sums == (2 if kind == "Q4_1" else 0), "products of one input share its block sums"
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert {a.name: a.i for a in node.attribute}["block_size"] == BLOCK
    names = [tensor.name for tensor in model.graph.initializer]
    assert not set(SHAPES) & set(names)
    assert [value.name for value in model.graph.output] == ["x", "up", "logits"]


def test_weights_that_are_not_named_stay(rewritten: Opened) -> None:
    blocks = random_blocks(np.random.default_rng(5), "Q4_1", WIDE, HIDDEN)
    path = rewritten({"layers.0.mlp.up.weight": blocks, "layers.7.mlp.up.weight": blocks})
    model = onnx.load(path)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("DequantizeLinear"), kinds.count("Gemm"), kinds.count("Gather")) == (1, 1, 1)
    assert {"embed.weight", "head.weight", "layers.0.attention.o.weight"} < {t.name for t in model.graph.initializer}
