"""The comparison with torch finds what is wrong with a graph, and says where."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from seqrt.errors import ExportError
from seqrt.exporter.check import check_compaction, check_decoder, check_graph, run_exact
from seqrt.graphs.decoder import Decoder

Stitched = tuple[Decoder, Path]


def test_a_right_decoder_passes(stitched: Stitched) -> None:
    decoder, folder = stitched
    differences = check_decoder(folder / "decoder.onnx", decoder)
    assert set(differences) == {"topk_logits", "topk_ids", "logsumexp", "hidden", "present_key", "present_value"}
    assert 0 < max(differences.values()) < 1e-4


def test_a_right_compaction_passes(stitched: Stitched) -> None:
    decoder, folder = stitched
    assert check_compaction(folder / "compaction.onnx", decoder.config) == {"present_key": 0, "present_value": 0}


def changed(stitched: Stitched, path: Path, name: str) -> Path:
    """The decoder with one weight off."""
    model = onnx.load(stitched[1] / "decoder.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.flat[0] += 0.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("weight", "output"),
    [
        ("layers.0.attention.qkv.bias", "topk_logits|hidden|present_key"),
        ("layers.2.mlp.down.bias", "topk_logits|hidden"),
        ("norm.weight", "topk_logits|hidden"),
        ("head.weight", "topk_logits"),
    ],
)
def test_one_wrong_weight_is_found(stitched: Stitched, tmp_path: Path, weight: str, output: str) -> None:
    path = changed(stitched, tmp_path / "decoder.onnx", weight)
    message = rf"^decoder\.onnx: ({output})\S* differs from torch by [\d.e+-]+; this is a fault of the exporter"
    with pytest.raises(ExportError, match=message) as caught:
        check_decoder(path, stitched[0])
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_found(stitched: Stitched, tmp_path: Path) -> None:
    model = onnx.load(stitched[1] / "decoder.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "layers.1.mlp.down.bias":
            array = np.full(onnx.numpy_helper.to_array(tensor).shape, np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(ExportError, match="differs from torch by nan"):
        check_decoder(tmp_path / "decoder.onnx", stitched[0])


class Best(nn.Module):
    """Doubles, and says which is largest."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x.argmax(1)


def graph(path: Path, *body: str, outputs: str = "float[N, M] y, int64[N] best") -> Path:
    text = f'<ir_version: 11, opset_import: ["" : 24]> g (float[N, M] x) => ({outputs}) {{ {" ".join(body)} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


RIGHT = "y = Add(x, x)"
BEST = "best = ArgMax<axis = 1, keepdims = 0>(x)"
INPUTS = {"x": np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)}


def test_a_right_graph_passes(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", RIGHT, BEST)
    assert check_graph(path, Best(), INPUTS, ["y", "best"]) == {"y": 0, "best": 0}


def test_a_module_with_one_output(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", RIGHT, outputs="float[N, M] y")

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    assert check_graph(path, Double(), INPUTS, ["y"]) == {"y": 0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (("y = Mul(x, x)", BEST), r"^g\.onnx: y differs from torch by [\d.]+; this is a fault of the exporter"),
        ((RIGHT, "best = ArgMin<axis = 1, keepdims = 0>(x)"), r"^g\.onnx: 100% of best differ from torch; this is"),
    ],
)
def test_a_wrong_graph_does_not(tmp_path: Path, body: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_graph(graph(tmp_path / "g.onnx", *body), Best(), INPUTS, ["y", "best"])


def test_another_shape_is_named(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", "y = Transpose(x)", BEST, outputs="float[M, N] y, int64[N] best")
    with pytest.raises(ExportError, match=r"^g\.onnx: y has shape \(6, 50\), torch gives \(50, 6\)$"):
        check_graph(path, Best(), INPUTS, ["y", "best"])


def test_large_values_may_differ_by_more(tmp_path: Path) -> None:
    """The tolerance is relative to the largest value of an output, or absolute below one."""
    one, eps = "one = Constant<value_float = 1.0>()", "eps = Constant<value_float = 0.0005>()"
    path = graph(tmp_path / "g.onnx", one, eps, "f = Add(one, eps)", "z = Add(x, x)", "y = Mul(z, f)", BEST)
    large = {"x": 1000 * INPUTS["x"]}
    differences = check_graph(path, Best(), large, ["y", "best"])
    assert 1 < differences["y"] < 5
    assert torch.from_numpy(large["x"]).abs().max() > 2000


def test_half_precision_is_judged_by_the_norm(tmp_path: Path) -> None:
    """One value may be off by more than float32 allows, all of them by 2% may not."""
    for factor, passes in ((1.01, True), (1.05, False)):
        path = graph(tmp_path / "g.onnx", f"two = Constant<value_float = {2 * factor}>()", "y = Mul(x, two)", BEST)
        with pytest.raises(ExportError, match="y differs from torch"):
            check_graph(path, Best(), INPUTS, ["y", "best"])
        if passes:
            assert 0.01 < check_graph(path, Best(), INPUTS, ["y", "best"], half=True)["y"] < 0.1
        else:
            with pytest.raises(ExportError, match=r"^g\.onnx: y differs from torch by 0\.\d+; this is a fault"):
                check_graph(path, Best(), INPUTS, ["y", "best"], half=True)


def test_inputs_are_given_in_the_type_of_the_graph(tmp_path: Path) -> None:
    text = '<ir_version: 11, opset_import: ["" : 24]> g (float16[N, M] x) => (float16[N, M] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    found = run_exact(tmp_path / "g.onnx", INPUTS)["y"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), 2 * INPUTS["x"], rtol=2e-3)
