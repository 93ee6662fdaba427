"""The shared data file: alignment, sharing, and tensors that come back as they went in."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from seqrt.errors import ExportError
from seqrt.exporter.store import weight_store

PAGE = 4096


def empty_graph() -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g")


def saved(graph: ir.Graph, path: Path) -> onnx.ModelProto:
    ir.save(ir.Model(graph, ir_version=11), path)
    return onnx.load(path)


def arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def external(path: Path, name: str) -> dict[str, str]:
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return {entry.key: entry.value for entry in tensor.external_data}


def test_tensors_come_back(tmp_path: Path) -> None:
    rng, graph = np.random.default_rng(0), empty_graph()
    wanted: dict[str, tuple[npt.NDArray[Any], ir.DataType]] = {
        "large": (rng.standard_normal((40, 30)).astype(np.float32), ir.DataType.FLOAT),
        "small": (rng.standard_normal(3).astype(np.float32), ir.DataType.FLOAT),
        "bytes": (rng.integers(-128, 128, (64, 33)).astype(np.int8), ir.DataType.INT8),
        "ids": (rng.integers(0, 1 << 40, 500), ir.DataType.INT64),
        "strided": (rng.standard_normal((70, 50)).astype(np.float32).T, ir.DataType.FLOAT),
    }
    with weight_store(tmp_path / "weights.bin") as store:
        for name, (array, dtype) in wanted.items():
            value = store.initializer(graph, name, array, dtype)
            assert (value.name, value.dtype) == (name, dtype)
            assert store.initializer(graph, name, array, dtype) is value
    found = arrays(saved(graph, tmp_path / "g.onnx"))
    assert list(found) == list(wanted)
    for name, (array, _) in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("shape", [(32, 3), (64, 100)], ids=["inline", "external"])
def test_four_bits_are_packed_in_pairs(tmp_path: Path, shape: tuple[int, int]) -> None:
    codes, graph = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8), empty_graph()
    with weight_store(tmp_path / "weights.bin") as store:
        store.initializer(graph, "codes", codes, ir.DataType.UINT4)
    found = arrays(saved(graph, tmp_path / "g.onnx"))["codes"]
    assert found.shape == shape
    np.testing.assert_array_equal(found.astype(np.uint8), codes)
    expected = codes.size // 2 if shape == (64, 100) else 0
    assert (tmp_path / "weights.bin").stat().st_size == expected


def test_pages_and_what_stays_inline(tmp_path: Path) -> None:
    graph = empty_graph()
    with weight_store(tmp_path / "weights.bin") as store:
        for name, size in (("inline", 256), ("first", 257), ("second", 5000), ("third", 300)):
            store.initializer(graph, name, np.full(size, len(name), np.float32), ir.DataType.FLOAT)
    path = tmp_path / "g.onnx"
    saved(graph, path)
    assert external(path, "inline") == {}
    places = [external(path, name) for name in ("first", "second", "third")]
    assert [int(place["offset"]) for place in places] == [0, PAGE, PAGE + 5 * PAGE]
    assert [int(place["length"]) for place in places] == [257 * 4, 5000 * 4, 300 * 4]
    assert {place["location"] for place in places} == {"weights.bin"}
    assert (tmp_path / "weights.bin").stat().st_size == 6 * PAGE + 1200


def test_graphs_share_a_tensor_and_read_it_once(tmp_path: Path) -> None:
    reads: list[str] = []
    array = np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)

    def read() -> npt.NDArray[Any]:
        reads.append("read")
        return array

    graphs = [empty_graph(), empty_graph()]
    with weight_store(tmp_path / "weights.bin") as store:
        for graph in graphs:
            place = ir.Value(name="head", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((50, 50)))
            place.const_value = store.tensor("head.weight", read, place)
            graph.register_initializer(place)
    assert len(reads) == 1
    assert (tmp_path / "weights.bin").stat().st_size == array.nbytes
    for i, graph in enumerate(graphs):
        np.testing.assert_array_equal(arrays(saved(graph, tmp_path / f"{i}.onnx"))["head"], array)
    assert external(tmp_path / "0.onnx", "head") == external(tmp_path / "1.onnx", "head")


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    place = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((2, 3)))
    with (
        weight_store(tmp_path / "weights.bin") as store,
        pytest.raises(ExportError, match=r"^layers\.0\.w has shape \(3, 2\), the graph expects \[2,3\]$"),
    ):
        store.tensor("layers.0.w", lambda: np.zeros((3, 2), np.float32), place)
