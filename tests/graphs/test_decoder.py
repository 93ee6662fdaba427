"""The decoder module, run eagerly, against transformers: every family, RoPE type and way to feed the tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrt.exporter.checkpoints import open_checkpoint
from seqrt.exporter.weights import DecoderWeights, load_decoder
from seqrt.graphs.decoder import NUM_CANDIDATES, Compaction, Decoder, Readout

VOCAB, CAPACITY = 150, 160
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2_SIZES: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}
GEMMA3: dict[str, Any] = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 70000.0, "factor": 8.0},
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 20}),
    "llama linear": ("llama", {"rope_parameters": LINEAR}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mistral full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3": ("gemma3", GEMMA3),
    "gpt2": ("gpt2", {}),
}


@dataclass(slots=True)
class Run:
    """A decoder with its cache."""

    decoder: Decoder
    caches: list[tuple[Tensor, Tensor]] = field(init=False)
    length: int = 0

    def __post_init__(self) -> None:
        config = self.decoder.config
        shape = (1, config.num_kv_heads, CAPACITY, config.head_dim)
        self.caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in config.layer_kinds]

    def step(self, tokens: list[int], parents: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top-K ids and logits `[T, K]`, logsumexp `[T]`, hidden `[T, H]` of a tree that stays uncommitted."""
        ancestors = torch.eye(len(tokens), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        with torch.no_grad():
            *outputs, self.caches = self.decoder(
                torch.tensor([tokens]),
                ancestors,
                ancestors.sum(1) - 1,
                torch.tensor([self.length]),
                torch.arange(len(tokens)),
                self.caches,
            )
        ids, logits, logsumexp, hidden = outputs
        return ids, logits, logsumexp, hidden

    def chain(self, tokens: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of tokens that follow one another, which are committed."""
        outputs = self.step(tokens, list(range(-1, len(tokens) - 1)))
        self.length += len(tokens)
        return outputs

    def commit(self, path: list[int]) -> None:
        keep, write = torch.tensor(path) + self.length, torch.tensor([self.length])
        move = Compaction()
        self.caches = [(move(key, keep, write), move(value, keep, write)) for key, value in self.caches]
        self.length += len(path)


@dataclass(frozen=True, slots=True)
class Pair:
    """A model in transformers, in float64, and as our module, in float32."""

    reference: Any
    decoder: Decoder

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.reference(torch.tensor([tokens])).logits[0]
        return found.float()

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        made = self.reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = made[0, len(prompt) :].tolist()
        return tokens


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, options = MODELS[request.param]
    config_class, model_class = CLASSES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**((GPT2_SIZES if family == "gpt2" else SIZES) | options)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1 if family == "gemma3" and "embed" in name else 0.4)
            else:  # biases and norms, about their own values
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if name.endswith("bias") else 0.3)
    path: Path = tmp_path_factory.mktemp(family)
    model.eval().save_pretrained(path)
    return Pair(model.double(), load_decoder(DecoderWeights(open_checkpoint(path))))


def random_tokens(count: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return tokens


def assert_logits(outputs: tuple[Tensor, Tensor, Tensor, Tensor], expected: Tensor) -> None:
    """All K = vocabulary candidates, their order and their logsumexp."""
    ids, logits, logsumexp, _ = outputs
    assert ids.shape == logits.shape == expected.shape
    assert (logits[:, :-1] >= logits[:, 1:]).all()
    torch.testing.assert_close(torch.empty_like(logits).scatter(1, ids, logits), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logsumexp, expected.logsumexp(1), atol=1e-4, rtol=1e-5)


def test_prompt_logits(pair: Pair) -> None:
    tokens = random_tokens(60)
    assert_logits(Run(pair.decoder).chain(tokens), pair.logits(tokens))


def test_prompt_in_chunks(pair: Pair) -> None:
    tokens, run = random_tokens(60), Run(pair.decoder)
    expected = pair.logits(tokens)
    for start, end in [(0, 1), (1, 14), (14, 15), (15, 47), (47, 60)]:
        assert_logits(run.chain(tokens[start:end]), expected[start:end])


def test_64_greedy_tokens(pair: Pair) -> None:
    prompt, run = random_tokens(40), Run(pair.decoder)
    expected = pair.greedy(prompt, 64)
    found = [int(run.chain(prompt)[0][-1, 0])]
    while len(found) < 64:
        found.append(int(run.chain(found[-1:])[0][0, 0]))
    assert found == expected
    assert len(set(found)) > 5, "a text that stands still would hide errors"


@pytest.mark.parametrize("pair", ["llama", "mistral", "gemma3", "gpt2"], indirect=True)
@settings(max_examples=10)
@given(data=st.data())
def test_every_node_of_a_tree_sees_its_own_path(pair: Pair, data: st.DataObject) -> None:
    """Trees on trees, each committed along a path that is moved into place."""
    text, run = random_tokens(data.draw(st.integers(1, 30))), Run(pair.decoder)
    run.chain(text)
    for _ in range(2):
        size = data.draw(st.integers(1, 7))
        parents = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))]
        tokens = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size))
        ids, logits, logsumexp, hidden = run.step(tokens, parents)
        path: list[int] = []
        for node in range(size):
            path, above = [], node
            while above >= 0:
                path, above = [above, *path], parents[above]
            expected = pair.logits(text + [tokens[i] for i in path])[-1:]
            row = slice(node, node + 1)
            assert_logits((ids[row], logits[row], logsumexp[row], hidden[row]), expected)
        run.commit(path)
        text += [tokens[i] for i in path]
    tokens = random_tokens(3, seed=1)
    assert_logits(run.chain(tokens), pair.logits(text + tokens)[-3:])


def test_logits_are_given_for_the_rows_asked_for(pair: Pair) -> None:
    tokens, run = random_tokens(9), Run(pair.decoder)
    *_, hidden = run.chain(tokens)
    with torch.no_grad():
        x = pair.decoder.readout.head(hidden)
    torch.testing.assert_close(x, pair.logits(tokens), atol=1e-4, rtol=0)
    run.length = 0
    arguments = (
        torch.tensor([tokens]),
        torch.ones(9, 9).tril().bool(),
        torch.arange(9),
        torch.tensor([0]),
    )
    with torch.no_grad():
        ids, *_ = pair.decoder(*arguments, torch.tensor([8, 0]), run.caches)
        none, *_ = pair.decoder(*arguments, torch.zeros(0, dtype=torch.int64), run.caches)
    assert ids[:, 0].tolist() == [int(x[8].argmax()), int(x[0].argmax())]
    assert none.shape == (0, VOCAB)


def test_tied_embeddings_are_one_tensor(pair: Pair) -> None:
    head, embed = pair.decoder.readout.head.weight, pair.decoder.frame.embed.weight
    is_tied = head.data_ptr() == embed.data_ptr()
    assert is_tied == pair.decoder.config.tied_embeddings == pair.reference.config.tie_word_embeddings


def test_large_vocabularies_give_256_candidates(pair: Pair) -> None:
    config = pair.decoder.config
    readout = Readout(type(config)(**{name: getattr(config, name) for name in config.__slots__} | {"vocab_size": 1000}))
    with torch.no_grad():
        ids, logits, logsumexp, hidden = readout(torch.randn(1, 4, config.hidden_size), torch.tensor([1, 3]))
        every = readout.head(hidden[[1, 3]])
    assert ids.shape == (2, NUM_CANDIDATES)
    torch.testing.assert_close(logits, every.topk(NUM_CANDIDATES).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(logsumexp, every.logsumexp(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("keep", "write"), [([5, 6, 9], 4), ([7], 2), ([4, 5], 4), ([9, 3, 3], 0), ([], 4)])
def test_compaction_copies_rows(keep: list[int], write: int) -> None:
    past = torch.randn(1, 3, 12, 4)
    expected = past.clone()
    expected[:, :, write : write + len(keep)] = past[:, :, keep]
    found = Compaction()(past, torch.tensor(keep, dtype=torch.int64), torch.tensor([write]))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
