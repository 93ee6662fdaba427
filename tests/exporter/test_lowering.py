"""Attention as exported for ONNX Runtime's CPUs: against torch, and against itself row by row."""

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqrt.exporter.stitch import model_of
from seqrt.exporter.targets import variants
from seqrt.exporter.trace import trace
from seqrt.graphs.ops import attention
from seqrt.runtime.bundle import CHUNK

Floats = npt.NDArray[np.float32]
HEADS = [(4, 2, 16), (9, 3, 64), (2, 2, 8), (3, 1, 20)]  # of queries, of keys, width


class Module(nn.Module):
    """The operator alone."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """As the operator."""
        out: Tensor = attention(query, key, value, mask)
        return out


@cache
def session(num_q: int, num_kv: int, width: int) -> ort.InferenceSession:
    arguments = {
        "query": torch.zeros(1, num_q, 6, width),
        "key": torch.zeros(1, num_kv, 10, width),
        "value": torch.zeros(1, num_kv, 10, width),
        "mask": torch.zeros(1, 1, 6, 10),
    }
    symbols = {"query": {2: "T"}, "key": {2: "C"}, "value": {2: "C"}, "mask": {2: "T", 3: "C"}}
    graph = trace("attention", Module(), arguments, ["out"], symbols)
    (variant,) = variants(("ort",), ("fp32",))
    variant.lower(model_of(graph))
    assert sum(node.op_type == "Reshape" for node in graph) == 3, "FoldRows: query, mask and result"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(model_of(graph)).SerializeToString(), options, ["CPUExecutionProvider"])


def arrays(rng: np.random.Generator, heads: tuple[int, int, int], rows: int, capacity: int) -> dict[str, Floats]:
    """A tree of `rows` nodes at the end of what is in the cache."""
    num_q, num_kv, width = heads
    seen = rng.random((rows, capacity)) < 0.7
    seen[:, 0] = True
    shapes = {"query": (num_q, rows), "key": (num_kv, capacity), "value": (num_kv, capacity)}
    made = {name: rng.standard_normal((1, *shape, width)).astype(np.float32) for name, shape in shapes.items()}
    made["query"] /= np.float32(width**0.5)  # queries come scaled; products of order ten would cost a digit
    return made | {"mask": np.where(seen, 0, -np.inf).astype(np.float32)[None, None]}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(HEADS), st.integers(1, CHUNK + 50), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_attention_is_that_of_torch(heads: tuple[int, int, int], rows: int, capacity: int, seed: int) -> None:
    feeds = arrays(np.random.default_rng(seed), heads, rows, capacity)
    expected = attention(*(torch.from_numpy(feeds[name]) for name in ("query", "key", "value", "mask")))
    (found,) = session(*heads).run(None, feeds)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(HEADS), st.integers(2, CHUNK - 1), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_row_has_the_same_bits_alone(heads: tuple[int, int, int], rows: int, blocks: int, seed: int) -> None:
    """What decision 6 promises, and drafting with quantised weights needs."""
    rng = np.random.default_rng(seed)
    feeds = arrays(rng, heads, rows, 64 * blocks)
    (together,) = session(*heads).run(None, feeds)
    row = int(rng.integers(rows))
    alone = feeds | {"query": feeds["query"][:, :, [row]].copy(), "mask": feeds["mask"][:, :, [row]].copy()}
    np.testing.assert_array_equal(session(*heads).run(None, alone)[0][:, :, 0], together[:, :, row])


@pytest.mark.parametrize("heads", HEADS)
def test_cache_rows_that_nobody_sees_change_no_bit(heads: tuple[int, int, int]) -> None:
    """The cache is larger in a drafted run than in a plain one."""
    feeds = arrays(np.random.default_rng(3), heads, 5, 256)
    feeds["mask"][..., 64:] = -np.inf
    short = {name: array[:, :, :64].copy() for name, array in feeds.items() if name in ("key", "value")}
    short |= {"query": feeds["query"], "mask": feeds["mask"][..., :64].copy()}
    np.testing.assert_array_equal(session(*heads).run(None, short)[0], session(*heads).run(None, feeds)[0])
