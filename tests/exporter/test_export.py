"""From a checkpoint to a bundle that runs: parity with transformers, and exports that fail leave nothing."""

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

from seqrt.errors import CheckpointError, ExportError
from seqrt.exporter.checkpoints import open_checkpoint
from seqrt.exporter.export import Report, export
from seqrt.exporter.weights import DecoderWeights, load_decoder
from seqrt.runtime.bundle import open_bundle
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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model for exports that fail."""
    path = tmp_path_factory.mktemp("source")
    build("llama").save_pretrained(path)
    return path


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports end where tracing would begin, which takes seconds."""

    def stop(config: object) -> None:
        raise ExportError("tracing began")

    monkeypatch.setattr("seqrt.exporter.export.decoder_graph", stop)


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
    assert set(exported.report.differences) == {"decoder", "logits", "compaction"}
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
    model = manifest.model
    assert (manifest.name, exported.report.name) == (exported.source.name,) * 2
    assert (manifest.capacity, manifest.quantization, manifest.heads, manifest.quality) == (128, "none", (), None)
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (VOCAB, HIDDEN, 2)
    assert (model.eos_token_ids, model.bos_token_id, model.num_candidates) == ((2,), 1, VOCAB)
    assert model.num_kv_heads == getattr(config, "num_key_value_heads", 4)
    assert {graph.role: graph.path for graph in manifest.graphs} == {
        role: f"graphs/{role}.onnx" for role in ("decoder", "logits", "compaction")
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


def medusa_heads(path: Path, num_layers: int, *, own: bool, reduced: int | None) -> dict[str, torch.Tensor]:
    """Random heads in vLLM's layout."""
    rng = torch.Generator().manual_seed(num_layers)
    tensors = {}
    for head in range(3):
        for layer in range(num_layers):
            tensors[f"blocks.{head}.layers.{layer}.weight"] = torch.randn(HIDDEN, HIDDEN, generator=rng) / 8
            tensors[f"blocks.{head}.layers.{layer}.bias"] = torch.randn(HIDDEN, generator=rng)
        if own:
            tensors[f"lm_heads.{head}.weight"] = torch.randn(VOCAB, HIDDEN, generator=rng)
    if reduced is not None:
        tensors["token_map"] = torch.randperm(VOCAB, generator=rng)[:reduced]
    path.mkdir()
    save_file(tensors, path / "medusa_lm_head.safetensors")
    return tensors


def head_log_probabilities(
    tensors: dict[str, torch.Tensor], base: torch.Tensor, hidden: torch.Tensor, head: int
) -> dict[int, float]:
    """Log-probability of each token of the draft vocabulary, by the paper's formula."""
    z = hidden
    num_layers = sum(name.startswith(f"blocks.{head}.") for name in tensors) // 2
    for layer in range(num_layers):
        prefix = f"blocks.{head}.layers.{layer}"
        z = z + torch.nn.functional.silu(tensors[f"{prefix}.weight"] @ z + tensors[f"{prefix}.bias"])
    output = tensors.get(f"lm_heads.{head}.weight", base)
    tokens = tensors.get("token_map", torch.arange(VOCAB))
    values = (output[tokens] @ z).log_softmax(0)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_draft_heads_are_exported_in_every_layout(source: Path, tmp_path: Path, quantize: Any) -> None:
    layouts = {
        "tied": medusa_heads(tmp_path / "tied", 1, own=False, reduced=None),
        "reduced": medusa_heads(tmp_path / "reduced", 1, own=False, reduced=40),
        "own": medusa_heads(tmp_path / "own", 2, own=True, reduced=60),
    }
    (tmp_path / "reduced" / "tree.json").write_text(
        json.dumps({"paths": ["0", "00", "1"], "accuracy": [[0.5, 0.25], [0.125, 0]]})
    )
    bundle = tmp_path / "bundle"
    report = export(source, bundle, heads={name: tmp_path / name for name in layouts}, quantize=quantize)
    infos = {head.name: head for head in open_bundle(bundle).manifest.heads}
    assert set(report.differences) == {"decoder", "logits", "compaction", *layouts}
    assert {(head.kind, head.num_heads, head.top_k) for head in infos.values()} == {("medusa", 3, 10)}
    assert infos["reduced"].tree == ("0", "00", "1")
    assert infos["reduced"].accuracy == ((0.5, 0.25), (0.125, 0.0))
    assert (infos["tied"].tree, infos["tied"].accuracy) == ((), ())

    base = torch.from_numpy(open_checkpoint(source).tensor("head.weight"))
    hidden = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
    for name, tensors in layouts.items():
        engine = OrtEngine(bundle / "graphs" / f"{name}.onnx", threads=1, exact=True)
        engine.input("hidden", (1, HIDDEN))[:] = hidden
        tokens, values = engine.output("token_ids", (3, 10)), engine.output("log_probabilities", (3, 10))
        engine.run()
        for head in range(3):
            expected = head_log_probabilities(tensors, base, hidden, head)
            found = dict(zip(tokens[head].tolist(), values[head].tolist(), strict=True))
            assert len(found) == 10
            tolerance = 1e-4 if quantize == "none" else 0.6
            assert all(abs(found[token] - expected[token]) < tolerance for token in found)
            if quantize == "none":
                assert set(found) == set(sorted(expected, key=lambda token: -expected[token])[:10])


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_bundles_stay_near_the_source(source: Path, tmp_path: Path, quantize: Any) -> None:
    report = export(source, tmp_path / "bundle", quantize=quantize)
    assert max(report.differences["decoder"].values()) < 1e-3
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.quantization, manifest.quality) == (quantize, None)
    for name in ("decoder", "logits"):
        path = tmp_path / "bundle" / "graphs" / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
        assert {node.domain for node in model.graph.node} == {""}
        weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert len(weights) == {"decoder": 2 * 4 + 2, "logits": 1}[name]
    tokens = random_tokens(100)
    source_decoder = load_decoder(DecoderWeights(open_checkpoint(source)))
    scores = load(tmp_path / "bundle", threads=1).score(tokens)
    expected = torch_scores(source_decoder, tokens)
    error = np.abs(scores.log_probabilities - expected).mean()
    spread = np.abs(expected - expected.mean()).mean()
    assert 1e-4 < error < (0.15 if quantize == "int8" else 0.6) * spread


def torch_scores(decoder: Any, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities of the tokens after the first, by our module run eagerly."""
    config, size = decoder.config, len(tokens)
    shape = (1, config.num_kv_heads, size, config.head_dim)
    rows = torch.arange(size)
    with torch.no_grad():
        *_, hidden, _ = decoder(
            torch.tensor([tokens]),
            torch.ones(size, size).tril().bool(),
            rows,
            torch.tensor([0]),
            rows[-1:],
            [(torch.zeros(shape), torch.zeros(shape)) for _ in config.layer_kinds],
        )
        log_probabilities = decoder.readout.head(hidden).double().log_softmax(-1)
    found: npt.NDArray[np.float64] = log_probabilities[rows[:-1], torch.tensor(tokens[1:])].numpy()
    return found


def gguf_model(path: Path, kinds: dict[str, Kind]) -> Path:
    """A llama of one layer whose matrices are quantised by the gguf library as `kinds` says, by their last name."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    shapes = {
        "token_embd": (VOCAB, HIDDEN),
        "output": (VOCAB, HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (32, HIDDEN),
        "blk.0.attn_v": (32, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (96, HIDDEN),
        "blk.0.ffn_up": (96, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 96),
    }
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    for name, shape in shapes.items():
        kind = kinds[name.rpartition("_")[2]] if name.rpartition("_")[2] in kinds else kinds[""]
        data = gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32) / 4, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [{"": Kind.Q4_1}, {"": Kind.Q4_0, "output": Kind.Q8_0, "down": Kind.F16}],
    ids=["Q4_1 throughout", "Q4_0 and others"],
)
def test_source_blocks_are_kept_without_a_second_rounding(tmp_path: Path, kinds: dict[str, Kind]) -> None:
    file = gguf_model(tmp_path / "tiny.gguf", kinds)
    report = export(file, tmp_path / "bundle", quantize="source")
    assert max(report.differences["decoder"].values()) < 1e-4
    tokens = random_tokens(60)
    expected = torch_scores(load_decoder(DecoderWeights(open_checkpoint(file))), tokens)
    exact = score_exactly(tmp_path / "bundle", tokens)
    np.testing.assert_allclose(exact, expected, atol=5e-3)
    model = onnx.load(tmp_path / "bundle" / "graphs" / "decoder.onnx", load_external_data=False)
    floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    kept = [name for name in floats if name.endswith(".weight")]
    assert kept == (["layers.0.mlp.down.weight"] if "down" in kinds else [])


def score_exactly(bundle: Path, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities by the decoder graph with float32 activations."""
    engine, size = OrtEngine(bundle / "graphs" / "decoder.onnx", threads=1, exact=True), len(tokens)
    for name, array in (
        ("token_ids", np.array([tokens])),
        ("ancestors", np.tri(size, dtype=np.bool_)),
        ("depth", np.arange(size)),
        ("past_len", np.zeros(1, np.int64)),
        ("logit_rows", np.arange(size)),
    ):
        engine.input(name, array.shape)[:] = array
    engine.state("past_key.0", "present_key.0", (1, 2, 64, 16))
    engine.state("past_value.0", "present_value.0", (1, 2, 64, 16))
    ids, logits = engine.output("topk_ids", (size, VOCAB)), engine.output("topk_logits", (size, VOCAB))
    total = engine.output("logsumexp", (size,))
    engine.output("hidden", (size, HIDDEN))
    engine.run()
    place = ids[:-1].astype(int) == np.array(tokens[1:])[:, None]
    found: npt.NDArray[np.float64] = logits[:-1].astype(np.float64)[place] - total[:-1].astype(np.float64)
    return found


def nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_an_existing_bundle_is_not_replaced_unasked(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("kept")
    (tmp_path / "bundle" / "seqrt.json").write_text("{}")
    with pytest.raises(ExportError, match=r"bundle exists; choose another directory or replace it with --force$"):
        export(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "mine").read_text() == "kept"


@pytest.mark.usefixtures("untraced")
def test_a_failed_export_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("kept")
    (tmp_path / "bundle" / "seqrt.json").write_text("{}")
    with pytest.raises(ExportError, match="tracing began"):
        export(source, tmp_path / "bundle", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "mine").read_text() == "kept"


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("is_empty", [True, False])
def test_force_replaces_bundles_and_empty_directories(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    if not is_empty:
        (bundle / "seqrt.json").write_text("{}")

    def write(folder: Path, *rest: object) -> dict[str, dict[str, float]]:
        (folder / "new").write_text("")
        return {}

    monkeypatch.setattr("seqrt.exporter.export._write", write)
    export(source, bundle, force=True)
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), ExportError("check failed"), RuntimeError("unexpected")]
)
def test_whatever_ends_an_export_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(config: object) -> None:
        raise error

    monkeypatch.setattr("seqrt.exporter.export.decoder_graph", stop)
    with pytest.raises(type(error)):
        export(source, tmp_path / "bundle")
    assert nothing_left(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
import seqrt.exporter.export as module

module.decoder_graph = lambda config: os.kill(os.getpid(), signal.SIGKILL)
module.export(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_bundle(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "seqrt.json").write_text("old")
    arguments = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "bundle")]
    ended = subprocess.run(arguments, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["seqrt.json"]
    assert (tmp_path / "bundle" / "seqrt.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "it died with its temporary folder in place"


def test_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(config: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seqrt.exporter.export.decoder_graph", stop)
    message = r"^cannot write .*bundle: No space left on device; free some space or choose another disk$"
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "bundle")
    assert nothing_left(tmp_path)


def test_folder_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"^cannot write to .*file/deep: Not a directory; choose another directory$"):
        export(source, tmp_path / "file" / "deep" / "bundle")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int3"}, r"^--quantize int3 is unknown; choose one of none, int8, int4, source$"),
        ({"capacity": 0}, r"^--capacity 0 is out of range; source\d* takes 1 to 128$"),
        ({"capacity": 129}, r"^--capacity 129 is out of range; source\d* takes 1 to 128$"),
        ({"capacity": -5}, r"^--capacity -5 is out of range"),
    ],
)
def test_arguments_out_of_range(source: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "bundle", **arguments)
    assert nothing_left(tmp_path)


@pytest.mark.usefixtures("untraced")
def test_sources_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(CheckpointError):
            export(path, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"blocks.1.layers.0.weight": torch.ones(32, 32)}), "Medusa heads of another"),
        (lambda t: t.pop("blocks.1.layers.0.weight"), "no weights for layer 0 of head 1"),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_tracing(
    source: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    tensors = medusa_heads(tmp_path / "heads", 1, own=False, reduced=None)
    change(tensors)
    save_file(tensors, tmp_path / "heads" / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export(source, tmp_path / "bundle", heads={"medusa": tmp_path / "heads"})
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]


@pytest.mark.usefixtures("untraced")
def test_source_quantisation_of_a_float_model_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export(source, tmp_path / "bundle", quantize="source")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("make", ["file", "full directory"])
def test_force_replaces_nothing_but_bundles(tmp_path: Path, make: str) -> None:
    target = tmp_path / "home"
    if make == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="is no bundle, and --force replaces nothing else"):
        export(tmp_path / "missing", target, force=True)
    assert (target if make == "file" else target / "thesis.txt").read_text() == "precious"
