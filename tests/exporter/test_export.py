"""From a checkpoint to a bundle that runs: parity with transformers, for every family."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from seqrt.errors import ExportError
from seqrt.exporter.export import Report, export
from seqrt.runtime.bundle import STATIC_ROOM, Bundle, open_bundle
from seqrt.runtime.engines.ort import OrtEngine
from seqrt.runtime.model import load

VOCAB, HIDDEN = 150, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3: dict[str, Any] = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 70000.0, "factor": 8.0},
    },
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"sliding_window": 16, "tie_word_embeddings": True},
    ),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"rope_parameters": YARN}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 24}),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM, GEMMA3),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, {}),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A transformers model, where it was saved, and what the export made of it."""

    family: str
    model: Any
    source: Path
    report: Report

    @property
    def bundle(self) -> Path:
        return self.report.bundle


def build(family: str) -> Any:
    config_class, model_class, options = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**((GPT2_SIZES if family == "gpt2" else SIZES) | options)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.04 if family == "gemma3" and "embed" in name else 0.4)
            else:  # biases and norms, about their own values
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if name.endswith("bias") else 0.3)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source, model = tmp_path_factory.mktemp(request.param), build(request.param)
    model.save_pretrained(source)
    return Exported(request.param, model, source, export(source, source / "bundle"))


def random_tokens(count: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(0).integers(3, VOCAB, count).tolist()
    return tokens


@pytest.mark.slow
def test_prompt_logits_and_64_greedy_tokens_are_those_of_transformers(exported: Exported) -> None:
    prompt, model = random_tokens(40), load(exported.bundle, threads=1)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = exported.model(ids).logits[0].log_softmax(-1).numpy()
        made = exported.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=64,
            eos_token_id=None,
            pad_token_id=0,
        )
    scores = model.score(prompt)
    np.testing.assert_allclose(scores.log_probabilities, expected[np.arange(39), prompt[1:]], atol=1e-4)
    np.testing.assert_array_equal(scores.top1_ids, expected[:-1].argmax(-1))
    answer = model.generate(prompt, max_new_tokens=64, ignore_eos=True, log_probabilities=True)
    assert answer.token_ids == made[0, 40:].tolist()
    assert len(set(answer.token_ids)) > 5, "a text that stands still would hide errors"


@pytest.mark.slow
def test_prompt_logits_within_1e_4(exported: Exported) -> None:
    prompt = random_tokens(50)
    engine = OrtEngine(exported.bundle / "graphs" / "decoder.onnx", threads=1)
    for name, array in (
        ("token_ids", np.array([prompt])),
        ("ancestors", np.tri(50, dtype=np.bool_)),
        ("depth", np.arange(50)),
        ("past_len", np.zeros(1, np.int64)),
        ("logit_rows", np.arange(50)),
    ):
        engine.input(name, array.shape)[:] = array
    for name, info in engine.inputs.items():
        if name.startswith(("past_key", "past_value")):
            shape = (1, int(info.shape[1]), 64, int(info.shape[3]))
            engine.state(name, name.replace("past", "present"), shape)
    k = engine.outputs["topk_ids"].shape[1]
    assert k == VOCAB, "the whole vocabulary, as it has fewer than 256"
    found, values = engine.output("topk_ids", (50, VOCAB)), engine.output("topk_logits", (50, VOCAB))
    engine.output("logsumexp", (50,))
    engine.output("hidden", (50, HIDDEN))
    engine.run()
    with torch.no_grad():
        expected = exported.model(torch.tensor([prompt])).logits[0].numpy()
    np.testing.assert_allclose(values.astype(np.float32), np.take_along_axis(expected, found.astype(int), 1), atol=1e-4)
    assert (np.sort(found.astype(int), axis=1) == np.arange(VOCAB)).all()


def test_every_graph_was_compared_with_torch(exported: Exported) -> None:
    assert set(exported.report.differences) == {"decoder", "logits", "score", "compaction"}
    decoder = exported.report.differences["decoder"]
    assert set(decoder) == {"topk_logits", "topk_ids", "logsumexp", "hidden", "present_key", "present_value"}
    assert 0 < max(decoder.values()) < 1e-4
    assert exported.report.differences["compaction"] == {"present_key": 0, "present_value": 0}


def test_graphs_are_standard(exported: Exported) -> None:
    for path in (exported.bundle / "graphs").glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
        assert {node.domain for node in model.graph.node} == {""}


def test_the_bundle_says_what_it_holds(exported: Exported) -> None:
    manifest = open_bundle(exported.bundle).manifest
    config = exported.model.config
    model = manifest.decoder
    assert (manifest.name, exported.report.name) == (exported.source.name,) * 2
    assert (manifest.capacity, manifest.quantization, manifest.heads, manifest.quality) == (128, "none", (), None)
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (VOCAB, HIDDEN, 2)
    assert (model.eos_token_ids, model.bos_token_id, model.num_candidates) == ((2,), 1, VOCAB)
    assert model.num_kv_heads == getattr(config, "num_key_value_heads", 4)
    assert {graph.role: graph.path for graph in manifest.graphs} == {
        role: f"graphs/{role}.onnx" for role in ("decoder", "logits", "score", "compaction")
    }
    assert {(graph.dtype, graph.opset) for graph in manifest.graphs} == {("fp32", 24)}
    assert {path.relative_to(exported.bundle).as_posix() for path in exported.bundle.rglob("*.*")} == {
        "seqrt.json",
        *manifest.files,
    }
    assert [path for path in exported.source.iterdir() if path.name.startswith(".bundle")] == []
    assert exported.bundle.stat().st_mode & 0o777 == 0o755


def test_weights_are_stored_once(exported: Exported) -> None:
    """Tied embeddings and the two graphs with an output layer share it."""
    size = (exported.bundle / "graphs" / "weights.bin").stat().st_size
    parameters = sum(parameter.numel() for parameter in exported.model.parameters())
    padding = 4096 * sum(1 for parameter in exported.model.parameters() if parameter.numel() > 256)
    assert size <= 4 * parameters + padding + 2 * 4 * 128 * 64, "rotation tables come on top"


def caches(bundle: Bundle, role: str, variant: str) -> set[tuple[int, int | str]]:
    """Element type and number of rows of every cache that goes in and out."""
    graph = onnx.load(bundle.graph(role, variant), load_external_data=False).graph
    kinds = [value.type.tensor_type for value in (*graph.input, *graph.output) if value.name.startswith(("pa", "pr"))]
    of_caches = [kind for kind in kinds if len(kind.shape.dim) == 4]
    assert len(of_caches) == 8, "two layers, keys and values, past and present"
    return {(kind.elem_type, kind.shape.dim[2].dim_param or kind.shape.dim[2].dim_value) for kind in of_caches}


def weight_files(bundle: Bundle, variant: str) -> set[str]:
    graph = onnx.load(bundle.graph("decoder", variant), load_external_data=False).graph
    return {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}


@pytest.mark.slow
def test_one_bundle_for_several_engines_and_types(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "bundle", targets=("ort", "rtx"), dtypes=("fp32", "fp16"), capacity=50)
    bundle = open_bundle(tmp_path / "bundle")
    graphs = {(graph.role, graph.profile, graph.dtype): graph for graph in bundle.manifest.graphs}
    roles, kinds = ("decoder", "logits", "score", "compaction"), ("fp32", "fp16")
    assert graphs.keys() == {(role, target, kind) for role in roles for target in ("ort", "rtx") for kind in kinds}
    assert set(bundle.manifest.variants) == {"ort-fp32", "ort-fp16", "rtx-fp32", "rtx-fp16"}
    assert {graph.opset for graph in graphs.values()} == {24}
    for (role, target, kind), graph in graphs.items():
        name = role if (target, kind) == ("ort", "fp32") else f"{role}.{target}-{kind}"
        assert graph.path == f"graphs/{name}.onnx"
        assert name in report.differences, "every graph was compared with torch"
    single, half = (graphs["decoder", "ort", kind].weight_bytes for kind in kinds)
    assert half == pytest.approx(single / 2, rel=0.02)
    float_, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for role in ("decoder", "compaction"):
        assert caches(bundle, role, "ort-fp32") == {(float_, "C")}
        assert caches(bundle, role, "ort-fp16") == {(float16, "C")}
        assert caches(bundle, role, "rtx-fp32") == {(float_, 50 + STATIC_ROOM)}
        assert caches(bundle, role, "rtx-fp16") == {(float16, 50 + STATIC_ROOM)}
    files = {
        "ort-fp32": "weights",
        "ort-fp16": "weights.fp16",
        "rtx-fp32": "weights.trt",
        "rtx-fp16": "weights.trt.fp16",
    }
    for variant, name in files.items():
        assert weight_files(bundle, variant) == {f"{name}.bin"}
        assert f"graphs/{name}.bin" in bundle.manifest.files
        onnx.checker.check_model(str(bundle.graph("decoder", variant)), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_for_tensorrt_compute_what_torch_does(source: Path, tmp_path: Path, quantize: Any) -> None:
    """Signed codes, and of 4 bits the rest of the offsets as a product of its own."""
    report = export(source, tmp_path / "bundle", targets=("rtx",), dtypes=("fp32",), quantize=quantize)
    assert report.differences.keys() == {f"{role}.rtx-fp32" for role in ("decoder", "logits", "score", "compaction")}
    graph = onnx.load(tmp_path / "bundle" / "graphs" / "decoder.rtx-fp32.onnx", load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in kinds if name.endswith(".codes") and name.startswith("layers.")} == {
        onnx.TensorProto.INT8 if quantize == "int8" else onnx.TensorProto.INT4
    }
    assert sum(name.endswith(".rest") for name in kinds) == (0 if quantize == "int8" else 2 * 4)
    assert not any(name.endswith(".zero") for name in kinds), "TensorRT knows none"


@pytest.mark.slow
def test_bf16_of_gemma_without_a_graph_for_onnxruntime(tmp_path: Path) -> None:
    build("gemma3").save_pretrained(tmp_path / "source")
    report = export(tmp_path / "source", tmp_path / "bundle", targets=("rtx",), dtypes=("bf16",))
    assert report.differences == {}, "ONNX Runtime has no kernels to compare with"
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.variants == ("rtx-bf16",)
    assert {path.name for path in (tmp_path / "bundle" / "graphs").iterdir()} == {
        *(f"{role}.rtx-bf16.onnx" for role in ("decoder", "logits", "score", "compaction")),
        "weights.trt.bf16.bin",
    }
    assert caches(bundle, "decoder", "rtx-bf16") == {(onnx.TensorProto.BFLOAT16, 128 + STATIC_ROOM)}
    onnx.checker.check_model(str(bundle.graph("decoder", "rtx-bf16")), full_check=True)
    graph = onnx.load(bundle.graph("decoder", "rtx-bf16"), load_external_data=False).graph
    floats = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    assert floats["hidden"] == floats["topk_logits"] == floats["logsumexp"] == onnx.TensorProto.FLOAT


@pytest.mark.slow
def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = -70000.0
    model.save_pretrained(tmp_path / "source")
    message = r"^layers\.1\.mlp\.down\.weight holds 7e\+04, above what fp16 holds \(65504\); use --dtype bf16 or fp32$"
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "source", tmp_path / "bundle", targets=("rtx",), check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
