"""The table of targets, and every graph that is shipped, lowered to each, against torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from seqrt.errors import ExportError
from seqrt.exporter.check import check_compaction, check_decoder, check_graph, run_exact
from seqrt.exporter.export import export
from seqrt.exporter.heads import GUESSES
from seqrt.exporter.parts import Part
from seqrt.exporter.stitch import logits_graph, model_of
from seqrt.exporter.targets import TARGETS, Variant, imports, require, variants
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import Decoder
from seqrt.graphs.hydra import HydraHead, PrefixLayer, prefix_config
from seqrt.graphs.medusa import MedusaHeads

Stitched = tuple[Decoder, Path]

HIDDEN, VOCAB, DRAFT = 32, 300, 40  # of the fixture `stitched`; a draft vocabulary
NATIVE = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Swish", "DequantizeLinear"}
LACKS = {
    "ort": set[str](),
    "rtx": set[str](),
    "trt11": set[str](),
    "trt10.16": {"Swish"},
    "trt10.3": NATIVE,
}


def names(targets: tuple[str, ...], dtypes: tuple[str, ...] = ()) -> list[str]:
    return [variant.name for variant in variants(targets, dtypes)]


def test_variants_are_targets_times_types() -> None:
    assert names(("ort",)) == ["ort-fp32"]
    assert names(("ort", "rtx", "ort")) == ["ort-fp32", "rtx-fp16"], "each in its own first type"
    assert names(("rtx", "trt11"), ("bf16", "fp32")) == ["rtx-bf16", "rtx-fp32", "trt11-bf16", "trt11-fp32"]
    assert names(("ort", "rtx"), ("fp16", "fp16")) == ["ort-fp16", "rtx-fp16"]
    assert names(()) == []


@pytest.mark.parametrize(
    ("targets", "dtypes", "message"),
    [
        (("tpu",), (), "--target tpu is unknown; choose from ort, rtx, trt11, trt10.16, trt10.3"),
        (("ort", "trt10"), (), "--target trt10 is unknown; choose from ort, rtx, trt11, trt10.16, trt10.3"),
        (("rtx",), ("fp16", "int8"), "--dtype int8 is unknown; choose from fp32, fp16, bf16"),
        (("rtx", "ort"), ("bf16",), "--dtype bf16 is not for --target ort; use fp32 or fp16"),
    ],
)
def test_what_there_is_not_is_named(targets: tuple[str, ...], dtypes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError) as caught:
        variants(targets, dtypes)
    assert str(caught.value) == message


def test_files_of_variants() -> None:
    """The bundle of a plain export has the names it always had."""
    files = {variant.name: (variant.file("decoder"), variant.weights) for variant in every_variant()}
    assert files["ort-fp32"] == ("decoder.onnx", "weights.bin")
    assert files["ort-fp16"] == ("decoder.ort-fp16.onnx", "weights.fp16.bin")
    assert files["rtx-fp32"] == ("decoder.rtx-fp32.onnx", "weights.trt.bin")
    assert files["rtx-fp16"] == ("decoder.rtx-fp16.onnx", "weights.trt.fp16.bin")
    assert files["trt10.3-bf16"] == ("decoder.trt10.3-bf16.onnx", "weights.trt.bf16.bin")
    assert len({file for file, _ in files.values()}) == len(files), "weights are shared, graphs are not"


def every_variant() -> list[Variant]:
    return [Variant(target, dtype) for target in TARGETS.values() for dtype in target.dtypes]


def test_who_imports_what() -> None:
    for name, lacking in LACKS.items():
        target = TARGETS[name]
        assert {op for op in NATIVE if not imports(target, op)} == lacking, name
        assert imports(target, "MatMul")
        assert not imports(target, "GridSample"), "what nobody asked for is not in the table"
    assert LACKS.keys() == TARGETS.keys()


@pytest.mark.parametrize(
    ("target", "op_type", "message"),
    [
        (
            "trt10.3",
            "DequantizeLinear",
            (
                "--target trt10.3: --quantize int4 needs the operator DequantizeLinear, which TensorRT 10.3 lacks;"
                " use --target ort, rtx, trt11 or trt10.16"
            ),
        ),
        (
            "trt10.16",
            "Swish",
            (
                "--target trt10.16: --quantize int4 needs the operator Swish, which TensorRT 10.16 lacks;"
                " use --target ort, rtx or trt11"
            ),
        ),
        (
            "rtx",
            "Det",
            "--target rtx: --quantize int4 needs the operator Det, which TensorRT-RTX 1.7 lacks; report this model",
        ),
        (
            "ort",
            "Det",
            "--target ort: --quantize int4 needs the operator Det, which ONNX Runtime 1.25 lacks; report this model",
        ),
    ],
)
def test_requirements_name_operator_target_version_and_remedy(target: str, op_type: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        require(TARGETS[target], op_type, "--quantize int4")
    assert str(caught.value) == message
    require(TARGETS[target], "MatMul", "--quantize int4")


def test_operators_that_nothing_stands_in_for_are_refused() -> None:
    text = '<ir_version: 11, opset_import: ["" : 24]> odd (float[2, 2] x) => (float y) { y = Det(x) }'
    with pytest.raises(ExportError, match=r"^--target rtx: odd needs the operator Det, which TensorRT-RTX 1\.7 lacks"):
        variants(("rtx",), ("fp32",))[0].lower(ir.from_proto(onnx.parser.parse_model(text)))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_exports_for_old_engines_are_refused(source: Path, tmp_path: Path, quantize: str) -> None:
    message = (
        rf"^--target trt10\.3: --quantize {quantize} needs the operator DequantizeLinear, which TensorRT 10\.3 lacks;"
        r" use --target ort, rtx, trt11 or trt10\.16$"
    )
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "bundle", targets=("ort", "trt10.3"), quantize=quantize)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=TARGETS)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each target, in float32."""
    (found,) = variants((request.param,), ("fp32",))
    return found


def lowered(model: ir.Model, variant: Variant, path: Path) -> Path:
    """The model in the variant's form, of which it is checked that it is one."""
    variant.lower(model)
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    made = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", variant.target.opset)]
    assert {node.op_type for node in made.graph.node if not imports(variant.target, node.op_type)} == set()
    return path


def test_the_decoder_is_that_of_torch(stitched: Stitched, variant: Variant, tmp_path: Path) -> None:
    decoder, folder = stitched
    path = lowered(ir.load(folder / "decoder.onnx"), variant, tmp_path / "decoder.onnx")
    differences = check_decoder(path, decoder)
    assert set(differences) == {"topk_logits", "topk_ids", "logsumexp", "hidden", "present_key", "present_value"}
    assert max(differences.values()) < 1e-4


@pytest.mark.parametrize(("past", "capacity"), [(0, 1), (0, 9), (39, 40)])
def test_one_row_is_that_of_the_native_graph(
    stitched: Stitched, variant: Variant, tmp_path: Path, past: int, capacity: int
) -> None:
    decoder, folder = stitched
    path = lowered(ir.load(folder / "decoder.onnx"), variant, tmp_path / "decoder.onnx")
    rng, shape = np.random.default_rng(past), (1, 2, capacity, 12)
    caches = [f"past_{part}.{layer}" for layer in range(decoder.config.num_layers) for part in ("key", "value")]
    inputs = {
        "token_ids": np.array([[7]]),
        "ancestors": np.ones((1, 1), np.bool_),
        "depth": np.zeros(1, np.int64),
        "past_len": np.array([past]),
        "logit_rows": np.zeros(1, np.int64),
    } | {name: rng.standard_normal(shape).astype(np.float32) for name in caches}
    expected, found = run_exact(folder / "decoder.onnx", inputs), run_exact(path, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "topk_ids":  # near ties
            np.testing.assert_allclose(
                found[name].astype(np.float32), value.astype(np.float32), atol=2e-5, err_msg=name
            )
    np.testing.assert_array_equal(found["topk_ids"][:, :20], expected["topk_ids"][:, :20])


def test_the_compaction_is_exact(stitched: Stitched, variant: Variant, tmp_path: Path) -> None:
    path = lowered(ir.load(stitched[1] / "compaction.onnx"), variant, tmp_path / "compaction.onnx")
    assert check_compaction(path, stitched[0].config) == {"present_key": 0, "present_value": 0}


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "tokens":
                parameter.copy_(torch.randperm(VOCAB, generator=generator)[: len(parameter)])
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module.eval().requires_grad_(requires_grad=False)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def medusa(_: DecoderConfig) -> Part:
    heads = MedusaHeads(HIDDEN, 3, 2, DRAFT, 10, own_outputs=True)
    return Part("medusa", randomized(heads), {"hidden": numbers(1, HIDDEN)}, GUESSES)


def hydra(_: DecoderConfig) -> Part:
    head = HydraHead(HIDDEN, VOCAB, 3, 2, DRAFT, 10, has_bias=True, embedding_scale=2.0)
    inputs = {"state": numbers(1, HIDDEN), "path": torch.arange(15).view(5, 3)}
    return Part("hydra.2", randomized(head), inputs, GUESSES, symbols={"path": {0: "P"}})


def prefix(config: DecoderConfig) -> Part:
    own = prefix_config(config)
    cache = (1, own.num_kv_heads, 32, own.head_dim)
    return Part(
        "hydra.prefix",
        randomized(PrefixLayer(own)),
        {
            "hidden": numbers(3, HIDDEN),
            "past_len": torch.tensor([4]),
            "past_key": numbers(*cache),
            "past_value": numbers(*cache),
        },
        ("state", "present_key", "present_value"),
        {"hidden": {0: "N"}, "past_key": {2: "C"}, "past_value": {2: "C"}},
    )


HEADS: dict[str, Callable[[DecoderConfig], Part]] = {"medusa": medusa, "hydra": hydra, "prefix": prefix}


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest, stitched: Stitched) -> tuple[Part, ir.Graph]:
    """Draft heads with random weights, and their graph."""
    made = HEADS[request.param](stitched[0].config)
    return made, made.trace()


def test_heads_are_those_of_torch(head: tuple[Part, ir.Graph], variant: Variant, tmp_path: Path) -> None:
    part, graph = head
    path = lowered(model_of(graph.clone()), variant, tmp_path / "head.onnx")
    inputs = {name: value.numpy() for name, value in part.inputs.items()}
    differences = check_graph(path, part.module, inputs, list(part.outputs))
    assert set(differences) == set(part.outputs)
    assert max(differences.values()) < 1e-4
    if "path" in inputs:  # one path only
        single = inputs | {"path": inputs["path"][:1]}
        assert max(check_graph(path, part.module, single, list(part.outputs)).values()) < 1e-4


def test_logits_are_those_of_torch(stitched: Stitched, variant: Variant, tmp_path: Path) -> None:
    decoder = stitched[0]
    graph = logits_graph(decoder.config)
    graph.initializers["head.weight"].const_value = ir.tensor(decoder.readout.head.weight.detach().numpy())
    path = lowered(model_of(graph), variant, tmp_path / "logits.onnx")
    assert check_graph(path, decoder.readout.head, {"hidden": numbers(2, HIDDEN).numpy()}, ["logits"])["logits"] < 1e-4
