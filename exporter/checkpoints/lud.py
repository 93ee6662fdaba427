"""A base model with what it learnt of lexical units: an adapter of tools.lud.train merged into its weights.

The adapter is a directory:

    lud.json                     lookahead, beta, base_model; how it was trained
    lud.safetensors              `pad_embedding` [H], what PAD is embedded as; `base_norm` [H], by which a base is known
    adapter_model.safetensors    LoRA as PEFT writes it, with adapter_config.json; absent where all weights were trained
                                 and the source is what came out

A weight becomes W + scale B A, in float32.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import Checkpoint, QuantBlocks
from seqrt.exporter.checkpoints.reading import Safetensors, read_json
from seqrt.graphs.config import DecoderConfig
from seqrt.runtime.bundle import UnitsInfo

Array = npt.NDArray[np.float32]

PAD: Final = "pad.weight"
DEFAULT_BETA: Final = 0.9
SAME_NORM: Final = 0.02  # of the base's final norm, largest difference: bfloat16 and back changes less
_KEY: Final = re.compile(
    r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.lora_([AB])\.weight"
)
_OURS: Final = {
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "o": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
_UNMERGED: Final = ("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias")


@dataclass(frozen=True)
class Merged:
    """A checkpoint whose weights have the adapter's learning in them.

    Attributes:
        base: what the adapter was trained on.
        adapter: its directory.
        info: what the bundle says of it.
    """

    base: Checkpoint
    adapter: Path
    info: UnitsInfo

    @property
    def config(self) -> DecoderConfig:
        """The base's, and PAD is read."""
        return replace(self.base.config, reads_pad=True)

    @property
    def name(self) -> str:
        """The base's."""
        return self.base.name

    @property
    def files(self) -> list[Path]:
        """The base's and the adapter's."""
        return list(dict.fromkeys([*self.base.files, *sorted(self.adapter.glob("*.safetensors"))]))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.eos_token_ids

    @property
    def bos_token_id(self) -> int | None:
        """The base's."""
        return self.base.bos_token_id

    @property
    def chat_template(self) -> str | None:
        """The base's."""
        return self.base.chat_template

    def names(self) -> list[str]:
        """The base's, and PAD."""
        return [*self.base.names(), PAD]

    def tensor(self, name: str) -> Array:
        """The base's with the adapter's change added to it."""
        if name == PAD:
            return _read(self.adapter / "lud.safetensors", "pad_embedding")[None]
        weight = self.base.tensor(name)
        return weight + self._lora.change(name) if name in self._lora.places else weight

    def blocks(self, name: str) -> QuantBlocks | None:
        """None: nothing is as the source quantised it."""
        return None

    def is_quantized(self, name: str) -> bool:
        """False, likewise."""
        return False

    def tokenizer_json(self) -> str | None:
        """The base's."""
        return self.base.tokenizer_json()

    @cached_property
    def _lora(self) -> "_Lora":
        return _open_lora(self.adapter, self.base.config)


def merge(base: Checkpoint, adapter: Path) -> Merged:
    """The base with an adapter of lexical units.

    Raises:
        CheckpointError: the adapter is missing or damaged, has no embedding of PAD, or is for another base.
    """
    if not (adapter / "lud.json").is_file():
        why = "has no lud.json" if adapter.is_dir() else "is no directory"
        raise CheckpointError(f"--lud {adapter} {why}; give what tools.lud.train wrote")
    settings, hidden = read_json(adapter / "lud.json"), base.config.hidden_size
    pad = _read(adapter / "lud.safetensors", "pad_embedding")
    norm = _read(adapter / "lud.safetensors", "base_norm")
    name = settings.get("base_model", "another model")
    if pad.shape != (hidden,) or norm.shape != (hidden,):
        raise CheckpointError(
            f"--lud {adapter} is for a base of hidden size {pad.size} ({name}), {base.name} has {hidden};"
            " export that base, or train an adapter for this one"
        )
    own = base.tensor("norm.weight")
    difference = float(np.abs(own - norm).max() / np.abs(norm).max())
    if difference > SAME_NORM:
        raise CheckpointError(
            f"--lud {adapter} is for another base ({name}): the final norm of {base.name} differs by {difference:.0%};"
            " export that base, or train an adapter for this one"
        )
    lookahead, beta = settings.get("lookahead"), settings.get("beta", DEFAULT_BETA)
    if not isinstance(lookahead, int) or lookahead < 2 or not isinstance(beta, int | float) or not 0 < beta <= 1:
        raise CheckpointError(
            f"{adapter / 'lud.json'} has lookahead {lookahead!r} and beta {beta!r}; lookahead must be 2 or more,"
            " beta more than 0 and at most 1"
        )
    info = UnitsInfo(pad_token_id=base.config.vocab_size, lookahead=lookahead, beta=float(beta), base=str(name))
    merged = Merged(base, adapter, info)
    _ = merged._lora  # what is wrong with it is said before anything is made
    return merged


@dataclass(frozen=True, slots=True)
class _Lora:
    """What the adapter adds: by canonical name, the names of A `[r, in]` and B `[out, r]`, and their scale."""

    tensors: Safetensors | None
    places: Mapping[str, tuple[str, str]]
    scale: float

    def change(self, name: str) -> Array:
        """`[out, in]`."""
        assert self.tensors is not None
        a, b = (self.tensors.read(part).to(torch.float32) for part in self.places[name])
        change: Array = ((b @ a) * self.scale).numpy()
        return change


def _open_lora(adapter: Path, config: DecoderConfig) -> _Lora:
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return _Lora(None, {}, 1.0)
    settings, tensors = read_json(adapter / "adapter_config.json"), Safetensors([file])
    _check_kind(adapter, settings)
    found: dict[str, dict[str, str]] = {}
    for key in tensors.entries:
        match = _KEY.fullmatch(key)
        if match is None or match[2] not in _OURS:
            raise CheckpointError(
                f"{file} changes {key}, which is not merged here; train the projections of layers only"
            )
        if int(match[1]) >= config.num_layers:
            raise CheckpointError(f"{file} changes {key}, this base has {config.num_layers} layers; use its own base")
        found.setdefault(f"layers.{match[1]}.{_OURS[match[2]]}.{match[2]}.weight", {})[match[3]] = key
    places = {}
    for name, parts in found.items():
        if parts.keys() != {"A", "B"}:
            raise CheckpointError(f"{file} has but one half of the change of {name}; copy the adapter again")
        places[name] = (parts["A"], parts["B"])
        _check_shape(file, name, tensors, places[name], config)
    rank = settings["r"]
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    return _Lora(tensors, places, float(scale))


def _check_kind(adapter: Path, settings: Mapping[str, Any]) -> None:
    config = adapter / "adapter_config.json"
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{config} is of kind {settings.get('peft_type')!r}; what can be merged is LORA")
    for name in ("r", "lora_alpha"):
        if not isinstance(settings.get(name), int | float) or settings[name] <= 0:
            raise CheckpointError(f"{config} has {name} {settings.get(name)!r}, which must be above 0; copy it again")
    if odd := [name for name in _UNMERGED if settings.get(name)]:
        raise CheckpointError(
            f"{config} has {odd[0]}, which is not merged here; merge it with PEFT and export the result"
        )


def _check_shape(file: Path, name: str, tensors: Safetensors, places: tuple[str, str], config: DecoderConfig) -> None:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size, wide = config.hidden_size, config.intermediate_size
    part = name.split(".")[-2]
    expected = {"q": (queries, size), "k": (keys, size), "v": (keys, size), "o": (size, queries), "down": (size, wide)}
    out, into = expected.get(part, (wide, size))
    (_, a), (b, _) = (tensors.entries[place].shape for place in places)
    if (b, a) != (out, into):
        raise CheckpointError(f"{file} is for another base: its {name} is {[b, a]}, this base has {[out, into]}")


def _read(file: Path, name: str) -> Array:
    tensors = Safetensors([file])
    if name not in tensors.entries:
        raise CheckpointError(f"{file} has no {name}, so that it knows no PAD; train it with tools.lud.train")
    values: Array = tensors.read(name).to(torch.float32).numpy()
    return values
