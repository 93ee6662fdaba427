"""Hugging Face model directories: config.json and safetensors, nothing of them executed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.checkpoints.hf_config import decoder_config, read_config
from seqrt.exporter.checkpoints.naming import canonical_shapes, source_name
from seqrt.exporter.checkpoints.reading import FLOAT_TYPES, Safetensors, read_json
from seqrt.graphs.config import DecoderConfig
from seqrt.runtime.bundle import MANIFEST

_LLAMA: Final = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"attention.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_GEMMA: Final = _LLAMA | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GPT2: Final = {
    "embed": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    **{f"attention.{name}": "attn.c_attn" for name in "qkv"},
    "attention.o": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
# Buffers that older versions saved, and the heads of a Medusa v1.0 model.
_IGNORED_SUFFIXES: Final = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_IGNORED_PREFIXES: Final = ("medusa_head.",)
# What transformers makes a tokenizer.json of; a runtime without transformers cannot.
_SLOW_TOKENIZERS: Final = ("tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class _Source:
    """How a canonical tensor is cut from one of the file: transposed, then the third `part` of its rows."""

    key: str
    transposed: bool = False
    part: int | None = None

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape after the cut."""
        turned = stored[::-1] if self.transposed else stored
        return turned if self.part is None else (turned[0] // 3, *turned[1:])


@dataclass(frozen=True, slots=True)
class HuggingFaceCheckpoint:
    """A model directory with its headers read; see `seqrt.exporter.checkpoints.Checkpoint`."""

    directory: Path
    config: DecoderConfig
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    chat_template: str | None
    weights: Safetensors
    sources: Mapping[str, _Source]

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.directory.resolve().name

    @property
    def files(self) -> list[Path]:
        """The safetensors files."""
        return self.weights.files

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self.sources)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor, float32."""
        source = self.sources[name]
        tensor = self.weights.read(source.key).to(torch.float32)
        if source.transposed:
            tensor = tensor.mT if tensor.ndim > 1 else tensor
        if source.part is not None:
            tensor = tensor.chunk(3)[source.part]
        return tensor.contiguous().numpy()

    def blocks(self, name: str) -> QuantBlocks | None:
        """None: these files hold plain numbers."""
        return None

    def is_quantized(self, name: str) -> bool:
        """No: these files hold plain numbers."""
        return False

    def tokenizer_json(self) -> str | None:
        """Contents of the directory's tokenizer.json, if it has one."""
        text = _text(self.directory / "tokenizer.json")
        slow = next((name for name in _SLOW_TOKENIZERS if (self.directory / name).exists()), None)
        if text is None and slow is not None:
            path = str(self.directory)
            raise CheckpointError(
                f"{path} has {slow} but no tokenizer.json; convert it in Python: "
                f"transformers.AutoTokenizer.from_pretrained({path!r}).save_pretrained({path!r})"
            )
        return text


def open_huggingface(directory: Path) -> HuggingFaceCheckpoint:
    """Open a model directory; reads headers only.

    Raises:
        CheckpointError: files are missing or damaged, the architecture is not supported, or config and
            tensors disagree.
    """
    if not (directory / "config.json").exists():
        files = sorted(file.name for kind in ("gguf", "pt", "pth", "ckpt") for file in directory.glob(f"*.{kind}"))
        if (directory / MANIFEST).exists():
            raise CheckpointError(f"{directory} is a bundle, exported already; run it, or pass what it was made of")
        advice = f"pass {directory / files[0]} itself" if files else "pass a directory with a Hugging Face model"
        raise CheckpointError(f"{directory} has no config.json; {advice}")
    model_type, hf_config = read_config(directory)
    config = decoder_config(model_type, hf_config)
    weights = Safetensors.of_directory(directory)
    if config.tied_embeddings and _has_own_head(weights, _modules(model_type, weights)["embed"]):
        config = dataclasses.replace(config, tied_embeddings=False)
    generation = _optional_json(directory / "generation_config.json")
    return HuggingFaceCheckpoint(
        directory=directory,
        config=config,
        eos_token_ids=_token_ids(generation.get("eos_token_id", getattr(hf_config, "eos_token_id", None))),
        bos_token_id=next(
            iter(_token_ids(generation.get("bos_token_id", getattr(hf_config, "bos_token_id", None)))), None
        ),
        chat_template=_chat_template(directory),
        weights=weights,
        sources=_sources(model_type, config, weights),
    )


def _sources(model_type: str, config: DecoderConfig, weights: Safetensors) -> dict[str, _Source]:
    """Source of every canonical tensor, each checked to be there in the shape that the config says."""
    modules = _modules(model_type, weights)
    layer = modules["embed"].removesuffix("wte") + "h.{}." if model_type == "gpt2" else "model.layers.{}."
    sources = {}
    for name, shape in canonical_shapes(config).items():
        source = _source(name, source_name(name, modules, layer), is_gpt2=model_type == "gpt2")
        entry = weights.entries.get(source.key)
        if entry is None:
            raise CheckpointError(f"tensor {source.key} is missing from {weights.files[0].parent}; download it again")
        if source.shape(entry.shape) != shape:
            raise CheckpointError(
                f"tensor {source.key} has shape {list(entry.shape)}, config.json asks for "
                f"{list(_stored(shape, source))}; the two do not belong together"
            )
        if entry.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"tensor {source.key} is {entry.dtype}; export a {'/'.join(FLOAT_TYPES)} checkpoint")
        sources[name] = source
    _check_leftovers(weights, {source.key for source in sources.values()}, config)
    return sources


def _source(name: str, key: str, *, is_gpt2: bool) -> _Source:
    """GPT-2 stores its projections as `[in, out]`, and q, k and v as one."""
    module = name.split(".", 2)[-1].rpartition(".")[0]
    if not is_gpt2 or not module.startswith(("attention.", "mlp.")):
        return _Source(key)
    part = "qkv".find(module[-1]) if module.startswith("attention.") else -1
    return _Source(key, transposed=name.endswith(".weight"), part=part if part >= 0 else None)


def _stored(shape: tuple[int, ...], source: _Source) -> tuple[int, ...]:
    whole = shape if source.part is None else (shape[0] * 3, *shape[1:])
    return whole[::-1] if source.transposed else whole


def _modules(model_type: str, weights: Safetensors) -> dict[str, str]:
    if model_type != "gpt2":
        return _GEMMA if model_type == "gemma3_text" else _LLAMA
    if "wte.weight" in weights.entries:  # the original GPT-2 files were saved without the outer module
        return {name: module.removeprefix("transformer.") for name, module in _GPT2.items()}
    return _GPT2


def _has_own_head(weights: Safetensors, embed: str) -> bool:
    """Whether a config that ties its embeddings lies: transformers too unties two stored ones that differ."""
    keys = ("lm_head.weight", f"{embed}.weight")
    if any(key not in weights.entries for key in keys):
        return False
    return not torch.equal(weights.read(keys[0]), weights.read(keys[1]))


def _check_leftovers(weights: Safetensors, used: set[str], config: DecoderConfig) -> None:
    """A tensor that nothing reads means that the model computes something else than we would."""
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    left = [
        key
        for key in sorted(weights.entries.keys() - used - ignored)
        if not key.endswith(_IGNORED_SUFFIXES) and not key.startswith(_IGNORED_PREFIXES)
    ]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"tensor {left[0]}{more} has no place in this architecture; it is not supported")


def _chat_template(directory: Path) -> str | None:
    template = _text(directory / "chat_template.jinja")
    if template is not None:
        return template
    template = _optional_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(token for token in values if isinstance(token, int))


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
