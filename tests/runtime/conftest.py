"""Two tiny random models as bundles, exported once: what everything that runs a model is tested on."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from seqrt.exporter.export import export
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.tree import Tree

sys.path.append(str(Path(__file__).resolve().parents[2]))  # tools/ is not part of the installed package

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
BOS, EOS = 0, 1
MERGES = ("h e", "t he", "i n", "e r", "a n", "r e", "o n", "in g", "t o", "o f", "s t", "l l")
HIDDEN, MAX_POSITIONS, NUM_HEADS = 64, 1024, 3
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _tokenizer() -> tokenizers.Tokenizer:
    """Bytes and a few merges: short ids, and every text has some."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    pairs = [(first, second) for first, second in (merge.split() for merge in MERGES)]
    model = tokenizers.models.BPE({word: i for i, word in enumerate(words)}, pairs)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


VOCAB = _tokenizer().get_vocab_size()
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def _randomize(model: Any, spread: float) -> Any:
    """Logits far enough apart that no two are equal up to rounding, and texts that do not stand still."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=spread)
    return model.eval()


@pytest.fixture(scope="session")
def llama() -> Any:
    """The transformers model behind `llama_bundle`."""
    return _randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), 0.4)


@pytest.fixture(scope="session")
def llama_bundle(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, a chat template, and random draft heads `medusa` that bring a tree of their own."""
    source, heads = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("heads")
    llama.save_pretrained(source)
    _tokenizer().save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text(TEMPLATE)
    rng = torch.Generator().manual_seed(2)
    tensors = {}
    for head in range(NUM_HEADS):
        tensors[f"blocks.{head}.layers.0.weight"] = torch.randn(HIDDEN, HIDDEN, generator=rng) / 8
        tensors[f"blocks.{head}.layers.0.bias"] = torch.randn(HIDDEN, generator=rng)
    save_file(tensors, heads / "medusa_lm_head.safetensors")
    (heads / "tree.json").write_text(json.dumps({"paths": ["0", "1", "00", "01", "10", "000", "2"]}))
    return export(source, source / "bundle", heads={"medusa": heads}).bundle


@pytest.fixture(scope="session")
def hydra_tensors() -> dict[str, dict[str, torch.Tensor]]:
    """Random Hydra heads `hydra`, and `hydra++` with a prefix layer, as their authors save them."""
    rng = torch.Generator().manual_seed(3)

    def linear(name: str, *shape: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(shape, generator=rng) / shape[1] ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(shape[0], generator=rng)}

    def heads(place: int, output: str) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for head in range(NUM_HEADS):
            tensors |= linear(f"hydra_mlp.{head}.{place}.linear", HIDDEN, HIDDEN * (head + 2))
            tensors |= linear(f"hydra_mlp.{head}.{place}.res_connection", HIDDEN, HIDDEN * (head + 2))
            tensors |= linear(f"hydra_mlp.{head}.{2 * place + 1}.linear", HIDDEN, HIDDEN)
            tensors |= linear(output.format(head), VOCAB, HIDDEN)
        return tensors

    prefix = transformers.LlamaModel(transformers.LlamaConfig(**LLAMA | {"num_hidden_layers": 1}))
    state = _randomize(prefix, 0.2).state_dict()
    kept = {f"prefix_embeding_layer.{name}": value.clone() for name, value in state.items()}
    return {"hydra": heads(0, "hydra_lm_head.{}"), "hydra++": heads(1, "hydra_lm_head.{}.1") | kept}


@pytest.fixture(scope="session")
def hydra_bundle(
    llama: Any, hydra_tensors: dict[str, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model of `llama_bundle` with both kinds of Hydra heads; `hydra` reads the last layer but one."""
    source, heads = tmp_path_factory.mktemp("llama"), {}
    llama.save_pretrained(source)
    _tokenizer().save(str(source / "tokenizer.json"))
    for name, tensors in hydra_tensors.items():
        heads[name] = tmp_path_factory.mktemp(name)
        torch.save(tensors, heads[name] / "hydra_lm_head.pt")
        (heads[name] / "config.json").write_text(json.dumps({"hidden_state_offset": int(name == "hydra")}))
    return export(source, source / "bundle", heads=heads).bundle


@pytest.fixture(scope="session")
def random_pad(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of lexical units that changes nothing of `llama` but for what it reads PAD as, which is random."""
    folder = tmp_path_factory.mktemp("pad")
    (folder / "lud.json").write_text(json.dumps({"base_model": "llama", "lookahead": 3}))
    norm, pad = (
        llama.model.norm.weight.detach().clone(),
        torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4)),
    )
    save_file({"pad_embedding": pad, "base_norm": norm}, folder / "lud.safetensors")
    return folder


@pytest.fixture(scope="session")
def gpu_bundle(
    llama: Any,
    hydra_tensors: dict[str, dict[str, torch.Tensor]],
    random_pad: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The model of `llama_bundle` for every kind of engine, in float32, with heads that keep a cache of their own."""
    source, heads = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("hydra")
    llama.save_pretrained(source)
    _tokenizer().save(str(source / "tokenizer.json"))
    torch.save(hydra_tensors["hydra++"], heads / "hydra_lm_head.pt")
    (heads / "config.json").write_text("{}")
    wanted = ("ort", "rtx", "trt10.3")
    rest: Any = {"targets": wanted, "dtypes": ("fp32",), "capacity": 256}
    return export(source, source / "bundle", heads={"hydra": heads}, lud=random_pad, **rest).bundle


@pytest.fixture(scope="session")
def lud_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of lexical units, all of its weights trained: of 24 tokens from 10 on, each is one more than the last."""
    from tools.lud import train
    from tools.lud.model import UnitModel
    from tools.lud.units import Marked

    folder, rng = tmp_path_factory.mktemp("units"), np.random.default_rng(0)
    torch.manual_seed(0)
    model = UnitModel(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, attn_implementation="sdpa")), 0)
    starts = enumerate(rng.integers(0, 24, 96).tolist())
    texts = [
        Marked(str(index), "count", [10 + (first + i) % 24 for i in range(64)], 2, [(2, 63)], 0.9, "any", 64, "test")
        for index, first in starts
    ]
    recipe = train.Recipe(lookahead=4, rank=0, distil=False, batch=1, epochs=2, learning_rate=5e-3, pads=2.0)
    train.train(model, texts, recipe, folder / "lud.pt")
    train.ship(folder / "model", model, None, {"base_model": "counting", "lookahead": 4, "beta": 0.8})
    _tokenizer().save(str(folder / "model" / "tokenizer.json"))
    return folder / "model"


@pytest.fixture(scope="session")
def lud_bundle(lud_checkpoint: Path) -> Path:
    """The bundle of `lud_checkpoint`."""
    return export(lud_checkpoint, lud_checkpoint.parent / "bundle", lud=lud_checkpoint).bundle


@pytest.fixture(scope="session")
def mistral() -> Any:
    """The transformers model behind `mistral_bundle`: every layer sees the last 16 positions only."""
    config = transformers.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        sliding_window=16,
        tie_word_embeddings=True,
        eos_token_id=EOS,
    )
    return _randomize(transformers.MistralForCausalLM(config), 0.4)


@pytest.fixture(scope="session")
def mistral_bundle(mistral: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without tokenizer; its capacity is all the positions that the model has."""
    source = tmp_path_factory.mktemp("mistral")
    mistral.save_pretrained(source)
    return export(source, source / "bundle").bundle


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any, list[int]], Any]:
    """transformers' logits `[N, V]` after each of N tokens, float32."""

    def logits(model: Any, tokens: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


@pytest.fixture(scope="session")
def continuation() -> Callable[[Any, list[int], int], list[int]]:
    """The greedy continuation of so many tokens by transformers.generate, end tokens ignored."""

    def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[int] = made[0, len(prompt) :].tolist()
        return tokens

    return greedy


@dataclass(slots=True)
class Prophet:
    """Knows the answer and drafts it, `length` tokens at a time."""

    answer: list[int]
    length: int = 6
    name: str = "lookup"
    samples: bool = False
    place: int = 0

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        self.place = 0

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        ahead = self.answer[self.place + 1 : self.place + min(self.length, max_nodes)]
        return Proposal(Tree.chain([root, *ahead]), np.ones(1 + len(ahead)))

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        self.place += len(tokens)


@pytest.fixture(scope="session")
def prophesied() -> Callable[[Model, list[int]], dict[str, Any]]:
    """Gives the options under which every draft of a model comes true."""

    def options(model: Model, answer: list[int]) -> dict[str, Any]:
        model.drafter(Options(draft="lookup"))
        for key in model._drafters:
            if key[0] == "lookup":
                model._drafters[key] = Prophet(answer)
        return {"draft": "lookup", "adaptive": False}

    return options


@pytest.fixture
def model(llama_bundle: Path) -> Model:
    """`llama_bundle`, with an empty cache."""
    return load(llama_bundle, threads=1)


@pytest.fixture
def prompt(model: Model) -> list[int]:
    """Tokens of a text."""
    return model.encode("the rest of the string in the tool")


@pytest.fixture
def answer(llama: Any, prompt: list[int], continuation: Callable[[Any, list[int], int], list[int]]) -> list[int]:
    """64 greedy tokens after `prompt`, by transformers."""
    tokens = continuation(llama, prompt, 64)
    assert len(set(tokens)) > 10
    return tokens
