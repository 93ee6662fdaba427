"""A tiny random Llama with a tokenizer and Medusa heads, exported once for all tests of the command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seqrt.cli import main
from seqrt.exporter.export import export
from seqrt.runtime.generate import Loop

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE, VOCAB = 64, 2, 4, 2, 96, 320
CAPACITY = 256
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failure."""
        lines = [line for line in self.err.splitlines() if not line.startswith("seqrt: warning")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("seqrt: error: "), self.err
        return lines[0].removeprefix("seqrt: error: ")


Seqrt = Callable[..., Result]


@pytest.fixture
def seqrt(capfd: pytest.CaptureFixture[str]) -> Seqrt:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses Ctrl-C in a step of the loop, counted from 1."""

    def press(number: int) -> None:
        step, left = Loop._step, [number]

        def interrupted(loop: Loop, *arguments: Any) -> list[int]:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return step(loop, *arguments)

        monkeypatch.setattr(Loop, "_step", interrupted)

    return press


@pytest.fixture(scope="session")
def spawn() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts a command line in a process of its own."""

    def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
        line = [sys.executable, "-c", "import sys; from seqrt.cli import main; sys.exit(main())"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen([*line, *map(str, arguments)], **streams)  # type: ignore[call-overload,no-any-return]

    return start


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory."""
    folder = tmp_path_factory.mktemp("source") / "tiny"
    write_source(folder)
    return folder


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Medusa heads in seqrt's own layout, with a tree."""
    folder = tmp_path_factory.mktemp("heads")
    write_heads(folder, HIDDEN)
    return folder


@pytest.fixture(scope="session")
def bundle(source: Path, heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in fp32 with its heads as `medusa`."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export(source, path, heads={"medusa": heads}, capacity=CAPACITY)
    return path


def write_source(folder: Path) -> None:
    """Writes config, weights, tokenizer and chat template."""
    folder.mkdir()
    tokenizer = _tokenizer()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2 * CAPACITY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE})
    )
    save_file(_weights(), folder / "model.safetensors", {"format": "pt"})


def write_heads(folder: Path, hidden_size: int, num_heads: int = 3) -> None:
    """Random residual blocks over the model's own output layer."""
    rng = np.random.default_rng(1)
    tensors = {}
    for head in range(num_heads):
        weight = 0.02 * rng.standard_normal((hidden_size, hidden_size))
        tensors[f"blocks.{head}.layers.0.weight"] = weight.astype(np.float32)
        tensors[f"blocks.{head}.layers.0.bias"] = np.zeros(hidden_size, np.float32)
    save_file(tensors, folder / "medusa_lm_head.safetensors")
    paths = ["0", "00", "1", "000", "01", "10"]
    (folder / "tree.json").write_text(json.dumps({"paths": paths, "accuracy": [[0.5, 0.2]] * num_heads}))


def lines(text: str) -> Sequence[str]:
    """Lines that are not empty."""
    return [line for line in text.splitlines() if line.strip()]


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog and the user asks the assistant a question "
    tokenizer.train_from_iterator([text * 4], trainer)
    return tokenizer


def _weights() -> dict[str, "np.typing.NDArray[np.float32]"]:
    rng = np.random.default_rng(0)

    def random(rows: int, columns: int, scale: float = 1.0) -> "np.typing.NDArray[np.float32]":
        values = scale * rng.standard_normal((rows, columns)) / columns**0.5
        return np.asarray(values, np.float32)

    kv = HIDDEN * KV_HEADS // HEADS
    weights = {
        "model.embed_tokens.weight": random(VOCAB, HIDDEN, 8.0),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": random(VOCAB, HIDDEN, 3.0),
    }
    for i in range(LAYERS):
        name = f"model.layers.{i}."
        for part, rows, columns in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", WIDE, HIDDEN),
            ("mlp.up_proj", WIDE, HIDDEN),
            ("mlp.down_proj", HIDDEN, WIDE),
        ):
            weights[f"{name}{part}.weight"] = random(rows, columns)
        weights[f"{name}input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        weights[f"{name}post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float32)
    return weights
