"""The ONNX Runtime engine on small graphs written out as text."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from seqrt.errors import EngineError
from seqrt.runtime.engines import Array, TensorInfo
from seqrt.runtime.engines.ort import OrtEngine

Make = Callable[[str], OrtEngine]

HEADER = '<ir_version: 11, opset_import: ["" : 24]>'
PRODUCT = """g (float[T, 3] x, float[3, N] w) => (float[T, N] y, int64[T] best)
{
    y = MatMul(x, w)
    best = ArgMax<axis = 1, keepdims = 0>(y)
}"""
CACHE = """g (float[1, 2, C, 4] past, float[1, 2, T, 4] update, int64[1] write)
=> (float[1, 2, C, 4] present, float total)
{
    present = TensorScatter<axis = 2>(past, update, write)
    total = ReduceSum<keepdims = 0>(present)
}"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def engine(text: str) -> OrtEngine:
        onnx.save(onnx.parser.parse_model(HEADER + text), tmp_path / "g.onnx")
        return OrtEngine(tmp_path / "g.onnx", threads=1)

    return engine


def floats(array: Array) -> npt.NDArray[np.float32]:
    assert array.dtype == np.float32
    return array.astype(np.float32)


def test_shapes_and_types_are_reported(make: Make) -> None:
    engine = make(PRODUCT)
    assert list(engine.inputs) == ["x", "w"]
    assert engine.inputs["x"] == TensorInfo(np.dtype(np.float32), ("T", 3))
    assert engine.outputs["best"] == TensorInfo(np.dtype(np.int64), ("T",))


def test_rebinding_follows_the_shapes(make: Make) -> None:
    """Larger and smaller again: the buffer is kept, so stale values of the larger shape must not show."""
    engine, rng = make(PRODUCT), np.random.default_rng(0)
    for rows, width in [(2, 4), (7, 4), (1, 4), (7, 4), (7, 9), (3, 1), (2, 4)]:
        x, w = rng.standard_normal((rows, 3), np.float32), rng.standard_normal((3, width), np.float32)
        engine.input("x", x.shape)[:] = x
        engine.input("w", w.shape)[:] = w
        y, best = engine.output("y", (rows, width)), engine.output("best", (rows,))
        engine.run()
        np.testing.assert_allclose(floats(y), x @ w, atol=1e-6)
        np.testing.assert_array_equal(best, (x @ w).argmax(1))


def test_buffers_stay_in_place_while_shapes_do(make: Make) -> None:
    engine = make(PRODUCT)
    engine.input("w", (3, 2))[:] = 1
    x, y = engine.input("x", (2, 3)), engine.output("y", (2, 2))
    engine.output("best", (2,))
    for value in (1.0, 2.0):
        x[:] = value
        assert engine.input("x", (2, 3)) is x
        assert engine.output("y", (2, 2)) is y
        engine.run()
        assert (y == 3 * value).all()


def test_no_rows(make: Make) -> None:
    engine = make(PRODUCT)
    engine.input("x", (0, 3))
    engine.input("w", (3, 2))[:] = 1
    y = engine.output("y", (0, 2))
    engine.output("best", (0,))
    engine.run()
    assert y.shape == (0, 2)


def test_state_is_updated_in_place_and_keeps_its_contents_when_it_grows(make: Make) -> None:
    engine, expected = make(CACHE), np.zeros((1, 2, 16, 4), np.float32)
    engine.output("total", ())
    write = engine.input("write", (1,))
    for start, rows, capacity in [(0, 3, 4), (3, 1, 4), (4, 2, 8), (6, 1, 8), (7, 8, 16), (2, 1, 16)]:
        engine.state("past", "present", (1, 2, capacity, 4))
        update = np.random.default_rng(start).standard_normal((1, 2, rows, 4), np.float32)
        engine.input("update", update.shape)[:] = update
        write[0] = start
        engine.run()
        expected[:, :, start : start + rows] = update
        kept = expected[:, :, :capacity]
        np.testing.assert_array_equal(engine.input("past", kept.shape), kept)
        np.testing.assert_allclose(floats(engine.output("total", ())), kept.sum(), rtol=1e-4, atol=1e-4)


def test_state_of_the_same_shape_is_left_alone(make: Make) -> None:
    engine = make(CACHE)
    engine.state("past", "present", (1, 2, 4, 4))
    engine.input("past", (1, 2, 4, 4))[:] = 5
    engine.state("past", "present", (1, 2, 4, 4))
    assert (engine.input("past", (1, 2, 4, 4)) == 5).all()


def test_shared_state_is_one_buffer(make: Make) -> None:
    """What either engine writes, the other reads; after the owner's buffer has grown, it is shared again."""
    owner, guest = make(CACHE), make(CACHE)
    for engine in (owner, guest):
        engine.output("total", ())
        engine.input("update", (1, 2, 1, 4))
    for capacity in (4, 8):
        owner.state("past", "present", (1, 2, capacity, 4))
        guest.share_state(owner)
        for engine, row in ((owner, 0), (guest, 2), (owner, 3)):
            engine.input("update", (1, 2, 1, 4))[:] = capacity + row
            engine.input("write", (1,))[0] = row
            engine.run()
        for engine in (owner, guest):
            rows = engine.input("past", (1, 2, capacity, 4))[0, 0, :4, 0]
            assert rows.tolist() == [capacity, 0, capacity + 2, capacity + 3]


def test_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^ONNX Runtime [\d.]+ refuses none\.onnx: .+[^.]; upgrade onnxruntime or"):
        OrtEngine(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x0b"])
def test_damaged_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"^ONNX Runtime [\d.]+ refuses bad\.onnx: .+[^.]; upgrade onnxruntime or"):
        OrtEngine(tmp_path / "bad.onnx")


def test_unknown_operator(make: Make) -> None:
    with pytest.raises(EngineError, match=r"refuses g\.onnx: .*Nonsense"):
        make("g (float[1] x) => (float[1] y) { y = Nonsense(x) }")


def test_failing_run_is_one_line(make: Make) -> None:
    engine = make("g (float[N] x, int64[M] shape) => (float[A, B] y) { y = Reshape(x, shape) }")
    engine.input("x", (6,))[:] = 1
    engine.input("shape", (2,))[:] = [4, 2]
    engine.output("y", (4, 2))
    with pytest.raises(EngineError) as caught:
        engine.run()
    assert str(caught.value).startswith("ONNX Runtime failed: ")
    assert str(caught.value).endswith("; close other programs if memory is short, else report it")
    assert "\n" not in str(caught.value)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"^onnxruntime is not installed; run: pip install 'seqrt\[cpu\]'$"):
        OrtEngine(tmp_path / "g.onnx")
