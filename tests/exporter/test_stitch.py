"""The stitched graphs: their contract, and what they compute at every size against the module run eagerly."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from seqrt.exporter.check import run_exact
from seqrt.exporter.stitch import parameters_of
from seqrt.exporter.weights import parameter_names
from seqrt.graphs.decoder import Decoder

Stitched = tuple[Decoder, Path]
Arrays = dict[str, npt.NDArray[Any]]

CACHES = [f"{part}.{layer}" for layer in range(3) for part in ("key", "value")]


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def load(stitched: Stitched, role: str) -> onnx.ModelProto:
    return onnx.load(stitched[1] / f"{role}.onnx")


def test_inputs_and_outputs_are_those_of_the_contract(stitched: Stitched) -> None:
    graph = load(stitched, "decoder").graph
    inputs, outputs = shapes(graph.input), shapes(graph.output)
    assert inputs == {
        "token_ids": [1, "T"],
        "ancestors": ["T", "T"],
        "depth": ["T"],
        "past_len": [1],
        "logit_rows": ["R"],
    } | {f"past_{name}": [1, 2, "C", 12] for name in CACHES}
    assert outputs == {
        "topk_ids": ["R", 256],
        "topk_logits": ["R", 256],
        "logsumexp": ["R"],
        "hidden": ["T", 32],
    } | {f"present_{name}": [1, 2, "C", 12] for name in CACHES}
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    integers = {"token_ids", "depth", "past_len", "logit_rows", "topk_ids"}
    assert {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT64} == integers
    assert kinds["ancestors"] == onnx.TensorProto.BOOL


def test_inputs_and_outputs_of_the_compaction(stitched: Stitched) -> None:
    graph = load(stitched, "compaction").graph
    assert shapes(graph.input) == {"keep": ["A"], "write": [1]} | {f"past_{n}": [1, 2, "C", 12] for n in CACHES}
    assert shapes(graph.output) == {f"present_{name}": [1, 2, "C", 12] for name in CACHES}
    assert all(tensor.dims == [] or max(tensor.dims) <= 4 for tensor in graph.initializer), "no weights"


@pytest.mark.parametrize("role", ["decoder", "compaction"])
def test_only_standard_operators(stitched: Stitched, role: str) -> None:
    onnx.checker.check_model(str(stitched[1] / f"{role}.onnx"), full_check=True)
    model = load(stitched, role)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0


def test_every_layer_is_there_with_weights_of_its_own(stitched: Stitched) -> None:
    graph = load(stitched, "decoder").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Attention"] == 3
    assert kinds["TensorScatter"] == 6
    used = Counter(name for node in graph.node for name in node.input)
    parameters = set(parameter_names(stitched[0]).values())
    assert len(parameters) == 3 * 14 + 3
    assert {name for name in parameters if used[name] != 1} == set()
    names = [value for node in graph.node for value in node.output if value]
    assert len(set(names)) == len(names)


def test_parameters_are_told_from_constants(stitched: Stitched) -> None:
    import onnx_ir as ir

    graph = ir.load(stitched[1] / "decoder.onnx").graph
    found = parameters_of(graph)
    assert set(found) == set(parameter_names(stitched[0]).values())
    assert len(graph.initializers) > len(found)


def random_inputs(rows: int, wanted: int, capacity: int, past: int, seed: int = 0) -> Arrays:
    """A random tree of `rows` nodes behind `past` committed rows of noise."""
    rng = np.random.default_rng(seed)
    ancestors = np.eye(rows, dtype=np.bool_)
    for node in range(1, rows):
        ancestors[node] |= ancestors[rng.integers(0, node)]
    return {
        "token_ids": rng.integers(0, 300, (1, rows)),
        "ancestors": ancestors,
        "depth": ancestors.sum(1) - 1,
        "past_len": np.array([past]),
        "logit_rows": rng.integers(0, rows, wanted),
    } | {f"past_{name}": rng.standard_normal((1, 2, capacity, 12)).astype(np.float32) for name in CACHES}


@pytest.mark.parametrize(
    ("rows", "wanted", "capacity", "past"),
    [(1, 1, 1, 0), (1, 1, 16, 0), (1, 1, 40, 39), (2, 1, 33, 12), (7, 7, 64, 20), (8, 0, 32, 3), (30, 1, 30, 0)],
)
def test_any_size_computes_what_the_module_does(
    stitched: Stitched, rows: int, wanted: int, capacity: int, past: int
) -> None:
    decoder, folder = stitched
    inputs = random_inputs(rows, wanted, capacity, past)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    caches = [(tensors[f"past_key.{layer}"], tensors[f"past_value.{layer}"]) for layer in range(3)]
    names = ("token_ids", "ancestors", "depth", "past_len", "logit_rows")
    with torch.no_grad():
        ids, logits, logsumexp, hidden, present = decoder(*(tensors[name] for name in names), caches)
    found = run_exact(folder / "decoder.onnx", inputs)
    expected = {"topk_logits": logits, "logsumexp": logsumexp, "hidden": hidden}
    for layer, (key, value) in enumerate(present):
        expected |= {f"present_key.{layer}": key, f"present_value.{layer}": value}
    for name, value in expected.items():
        assert found[name].shape == tuple(value.shape)
        np.testing.assert_allclose(found[name].astype(np.float32), value.numpy(), atol=2e-5, err_msg=name)
    assert found["topk_ids"].shape == (wanted, 256)
    np.testing.assert_array_equal(found["topk_ids"][:, :20], ids[:, :20].numpy())


@pytest.mark.parametrize(("keep", "write"), [([5, 6, 9], 4), ([7], 2), ([9, 3, 3], 0), ([], 4)])
def test_compaction_moves_rows_of_every_cache(stitched: Stitched, keep: list[int], write: int) -> None:
    rng = np.random.default_rng(0)
    past = {name: rng.standard_normal((1, 2, 12, 12)).astype(np.float32) for name in CACHES}
    rows = {"keep": np.array(keep, np.int64), "write": np.array([write])}
    found = run_exact(stitched[1] / "compaction.onnx", rows | {f"past_{n}": array for n, array in past.items()})
    for name, array in past.items():
        expected = array.copy()
        expected[:, :, write : write + len(keep)] = array[:, :, keep]
        np.testing.assert_array_equal(found[f"present_{name}"], expected)
