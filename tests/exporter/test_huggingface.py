"""Hugging Face directories: every canonical tensor against the transformers module it comes from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import Checkpoint, open_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
GPT2_SIZES: dict[str, Any] = {"vocab_size": 41, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64}


def build(family: str, **options: Any) -> Any:
    """A small model, every parameter random, so that no two tensors can be mistaken for one another."""
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    }[family]
    config = config_class(**((GPT2_SIZES if family == "gpt2" else SIZES) | options))
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Any, Checkpoint]]:
    def save(family: str, max_shard_size: str = "1GB", **options: Any) -> tuple[Any, Checkpoint]:
        model = build(family, **options)
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        return model, open_checkpoint(tmp_path)

    return save


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def expected_llama_like(model: Any) -> dict[str, torch.Tensor]:
    """Canonical tensors of every family but GPT-2, from the modules of the model."""
    expected = {"embed.weight": model.model.embed_tokens.weight, "norm.weight": model.model.norm.weight}
    if not model.config.tie_word_embeddings:
        expected["head.weight"] = model.lm_head.weight
    is_gemma = model.config.model_type == "gemma3_text"
    for index, layer in enumerate(model.model.layers):
        modules = {
            "attention_norm": layer.input_layernorm,
            "mlp_norm": layer.pre_feedforward_layernorm if is_gemma else layer.post_attention_layernorm,
            "attention.q": layer.self_attn.q_proj,
            "attention.k": layer.self_attn.k_proj,
            "attention.v": layer.self_attn.v_proj,
            "attention.o": layer.self_attn.o_proj,
            "mlp.gate": layer.mlp.gate_proj,
            "mlp.up": layer.mlp.up_proj,
            "mlp.down": layer.mlp.down_proj,
        }
        if hasattr(layer.self_attn, "q_norm"):
            modules |= {
                "attention.q_norm": layer.self_attn.q_norm,
                "attention.k_norm": layer.self_attn.k_norm,
            }
        if is_gemma:
            modules["attention_post_norm"] = layer.post_attention_layernorm
            modules["mlp_post_norm"] = layer.post_feedforward_layernorm
        for name, module in modules.items():
            for leaf, parameter in module.named_parameters():
                expected[f"layers.{index}.{name}.{leaf}"] = parameter
    return expected


def expected_gpt2(model: Any) -> dict[str, torch.Tensor]:
    body = model.transformer
    expected = {"embed.weight": body.wte.weight, "position.weight": body.wpe.weight}
    expected |= {"norm.weight": body.ln_f.weight, "norm.bias": body.ln_f.bias}
    for index, block in enumerate(body.h):
        prefix = f"layers.{index}"
        for name, norm in (("attention_norm", block.ln_1), ("mlp_norm", block.ln_2)):
            expected |= {f"{prefix}.{name}.weight": norm.weight, f"{prefix}.{name}.bias": norm.bias}
        width = body.config.n_embd
        for part, name in enumerate("qkv"):
            columns = slice(part * width, (part + 1) * width)
            expected[f"{prefix}.attention.{name}.weight"] = block.attn.c_attn.weight[:, columns].T
            expected[f"{prefix}.attention.{name}.bias"] = block.attn.c_attn.bias[columns]
        linears = {"attention.o": block.attn.c_proj, "mlp.up": block.mlp.c_fc, "mlp.down": block.mlp.c_proj}
        for name, linear in linears.items():
            expected |= {f"{prefix}.{name}.weight": linear.weight.T, f"{prefix}.{name}.bias": linear.bias}
    return expected


def assert_same_tensors(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, tensor in expected.items():
        actual = checkpoint.tensor(name)
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, tensor.detach().float().numpy(), err_msg=name)
        assert checkpoint.blocks(name) is None


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 16}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("gemma3", {"head_dim": 16}),
    ],
)
def test_every_tensor(saved: Callable[..., tuple[Any, Checkpoint]], family: str, options: dict[str, Any]) -> None:
    model, checkpoint = saved(family, **options)
    assert_same_tensors(checkpoint, expected_llama_like(model))


def test_every_tensor_of_gpt2(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    model, checkpoint = saved("gpt2")
    assert_same_tensors(checkpoint, expected_gpt2(model))


def test_original_gpt2_names(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    model, _ = saved("gpt2")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)

    edit_weights(tmp_path, rename)
    assert_same_tensors(open_checkpoint(tmp_path), expected_gpt2(model))


def test_shards(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    model, checkpoint = saved("llama", max_shard_size="10KB")
    assert len(checkpoint.files) > 2
    assert_same_tensors(checkpoint, expected_llama_like(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    model.save_pretrained(tmp_path)
    assert_same_tensors(open_checkpoint(tmp_path), expected_llama_like(model))


def test_tied_model_that_stores_another_head_is_untied(
    saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path
) -> None:
    model, checkpoint = saved("llama", tie_word_embeddings=True)
    assert checkpoint.config.tied_embeddings
    same = model.model.embed_tokens.weight.detach().clone()

    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": same}))
    assert open_checkpoint(tmp_path).config.tied_embeddings

    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": same + 1}))
    untied = open_checkpoint(tmp_path)
    assert not untied.config.tied_embeddings
    np.testing.assert_array_equal(untied.tensor("head.weight"), (same + 1).numpy())


def test_llama_config(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    _, checkpoint = saved("llama", rope_parameters=rope, rms_norm_eps=2e-5)
    config = checkpoint.config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (41, 24, 40)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 3, 1, 8)
    assert (config.max_positions, config.norm, config.norm_eps) == (128, "rms", 2e-5)
    assert (config.activation, config.gated_mlp, config.tied_embeddings) == ("silu", True, False)
    assert (config.embedding_scale, config.attention_scale) == (1.0, 8**-0.5)
    assert config.layer_kinds == ("full", "full")
    assert (config.qkv_bias, config.out_bias, config.mlp_bias, config.qk_norm) == (False, False, False, False)
    assert config.ropes["full"].kind == "llama3"
    assert config.ropes["full"].theta == 500000.0
    assert config.ropes["full"].parameters["original_max_position_embeddings"] == 64


def test_old_rope_scaling_key(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    saved("llama")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["rope_parameters"]
    raw |= {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rope = open_checkpoint(tmp_path).config.ropes["full"]
    assert (rope.kind, rope.theta, rope.parameters["factor"]) == ("linear", 20000.0, 2.0)


@pytest.mark.parametrize(("window", "kind"), [(16, "sliding"), (None, "full")])
def test_mistral_window(saved: Callable[..., tuple[Any, Checkpoint]], window: int | None, kind: str) -> None:
    _, checkpoint = saved("mistral", sliding_window=window)
    assert checkpoint.config.layer_kinds == (kind, kind)
    assert checkpoint.config.sliding_window == window
    assert list(checkpoint.config.ropes) == [kind]


def test_qwen2_slides_from_max_window_layers_on(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    _, checkpoint = saved("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    config = checkpoint.config
    assert (config.layer_kinds, config.sliding_window) == (("full", "sliding"), 16)
    assert (config.qkv_bias, config.out_bias) == (True, False)


def test_gemma3_config(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 70000.0, "factor": 8.0},
    }
    layers = ["sliding_attention", "full_attention"]
    _, checkpoint = saved("gemma3", rope_parameters=rope, layer_types=layers, query_pre_attn_scalar=12)
    config = checkpoint.config
    assert (config.norm, config.qk_norm, config.post_norms) == ("rms_plus_one", True, True)
    assert (config.embedding_scale, config.attention_scale) == (24**0.5, 12**-0.5)
    assert (config.activation, config.tied_embeddings) == ("gelu_tanh", True)
    assert (config.layer_kinds, config.sliding_window) == (("sliding", "full"), 4096)
    assert (config.ropes["sliding"].kind, config.ropes["sliding"].theta) == ("default", 5000.0)
    assert (config.ropes["full"].kind, config.ropes["full"].theta) == ("linear", 70000.0)


def test_gpt2_config(saved: Callable[..., tuple[Any, Checkpoint]]) -> None:
    config = saved("gpt2")[1].config
    assert (config.norm, config.norm_eps, config.activation) == ("layer", 1e-5, "gelu_tanh")
    assert (config.gated_mlp, config.learned_positions, config.ropes) == (False, True, {})
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, True, True)
    assert (config.intermediate_size, config.max_positions) == (96, 64)


def test_medusa_heads_in_a_model_are_ignored(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    model, _ = saved("llama")
    edit_weights(tmp_path, lambda tensors: tensors.update({"medusa_head.0.0.linear.weight": torch.ones(24, 24)}))
    edit_config(tmp_path, architectures=["MedusaLlamaForCausalLM"], medusa_num_heads=1)
    assert_same_tensors(open_checkpoint(tmp_path), expected_llama_like(model))


def test_files_beside_the_weights(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    _, checkpoint = saved("llama")
    assert (checkpoint.eos_token_ids, checkpoint.bos_token_id) == ((2,), 1)
    assert (checkpoint.chat_template, checkpoint.tokenizer_json()) == (None, None)

    generation = {"eos_token_id": [7, 9], "bos_token_id": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "tokenizer.json").write_text("{}")
    templates = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.eos_token_ids, checkpoint.bos_token_id) == ((7, 9), 3)
    assert (checkpoint.chat_template, checkpoint.tokenizer_json()) == ("d", "{}")
    assert checkpoint.name == tmp_path.name

    (tmp_path / "chat_template.jinja").write_text("j")
    assert open_checkpoint(tmp_path).chat_template == "j"


def test_slow_tokenizer_alone_is_refused(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    _, checkpoint = saved("llama")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has tokenizer\.model but no tokenizer\.json; convert it in Python: "):
        checkpoint.tokenizer_json()


def test_nothing_is_printed(
    saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved("llama")
    edit_config(tmp_path, rope_parameters={"rope_type": "linear", "rope_theta": 1.0, "factor": 0.5, "odd": 1})
    capfd.readouterr()
    open_checkpoint(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["FalconForCausalLM"]},
            r"architecture 'FalconForCausalLM'.*use one of LlamaForCausalLM",
        ),
        ({"architectures": None, "model_type": "mamba"}, "architecture 'mamba'"),
        (
            {"architectures": {"a": 1}, "model_type": ["llama"]},
            r"model_type \"\['llama'\]\"\) is not supported",
        ),
        ({"num_attention_heads": 0}, "config.json is not valid"),
        ({"num_key_value_heads": 2}, "3 attention heads cannot share 2 key-value heads evenly"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, r"its own Python code \(auto_map\)"),
        (
            {"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}},
            "RoPE type 'magic' is not supported",
        ),
        ({"hidden_act": "relu6"}, "activation 'relu6' is not supported; use one of silu, gelu, gelu_tanh"),
        ({"num_attention_heads": "many"}, "config.json is not valid"),
        (
            {"intermediate_size": 48},
            r"mlp.gate_proj.weight has shape \[40, 24\], config.json asks for \[48, 24\]",
        ),
        ({"vocab_size": 40}, r"embed_tokens.weight has shape \[41, 24\], config.json asks for \[40, 24\]"),
        ({"num_hidden_layers": 3}, r"tensor model.layers.2.\S+ is missing"),
        ({"num_hidden_layers": 1}, r"tensor model.layers.1.\S+ and 8 more has no place"),
        ({"attention_bias": True}, "tensor model.layers.0.self_attn.q_proj.bias is missing"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config=.* is not supported",
        ),
    ],
)
def test_configs_that_are_refused(
    saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    saved("llama")
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True is not supported",
        ),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
    ],
)
def test_arithmetic_that_is_refused(
    saved: Callable[..., tuple[Any, Checkpoint]], family: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        saved(family, **options)


def test_damaged_files(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    saved("llama")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or cut short .*; download it again"):
            open_checkpoint(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors; download the weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"holds only pytorch_model.bin; convert it to model.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        open_checkpoint(tmp_path)


def test_integer_weights_are_refused(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    saved("llama")
    edit_weights(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"model.norm.weight is I8; export a F32/F16/BF16/F64 checkpoint"):
        open_checkpoint(tmp_path)


def test_shards_missing_or_outside(saved: Callable[..., tuple[Any, Checkpoint]], tmp_path: Path) -> None:
    _, checkpoint = saved("llama", max_shard_size="10KB")
    checkpoint.files[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{checkpoint.files[1].name} is missing; download it"):
        open_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other/model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'../other/model.safetensors', which is not a file beside it"):
        open_checkpoint(tmp_path)


def test_sources_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"`hf download org/model-1.5B --local-dir model-1.5B`"):
        open_checkpoint(Path("org/model-1.5B"))
    with pytest.raises(CheckpointError, match=r"no/such/model does not exist; pass a model directory"):
        open_checkpoint(Path("no/such/model"))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match=r"model.onnx is neither a model directory nor a .gguf file"):
        open_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"has no config.json; pass a directory with a Hugging Face model"):
        open_checkpoint(tmp_path)
    (tmp_path / "seqrt.json").touch()
    with pytest.raises(CheckpointError, match=r"is a bundle, exported already"):
        open_checkpoint(tmp_path)
    (tmp_path / "seqrt.json").unlink()
    (tmp_path / "tiny.gguf").touch()
    with pytest.raises(CheckpointError, match=r"has no config.json; pass .*tiny.gguf itself"):
        open_checkpoint(tmp_path)
