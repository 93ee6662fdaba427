"""GGUF models: llama (Mistral included), qwen2, qwen3, gemma3 and gpt2, as llama.cpp computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.checkpoints.gguf_config import ROPE_FACTORS, decoder_config
from seqrt.exporter.checkpoints.gguf_file import FLOAT_TYPES, GgufFile, read_gguf
from seqrt.exporter.checkpoints.naming import canonical_shapes, source_name
from seqrt.exporter.tokenizer import tokenizer_json
from seqrt.graphs.config import DecoderConfig

_MODULES: Final = {
    "embed": "token_embd",
    "position": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    **{f"attention.{name}": f"attn_{name}" for name in ("q", "k", "v", "q_norm", "k_norm")},
    "attention.o": "attn_output",
    **{f"mlp.{name}": f"ffn_{name}" for name in ("gate", "up", "down")},
}
_GPT2: Final = _MODULES | {f"attention.{name}": "attn_qkv" for name in "qkv"}
# Ends of a turn that llama.cpp too recognises by name, because many files declare only one end token.
_TURN_ENDS: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
_END_KEYS: Final = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_CONTROL = 3

Rows = npt.NDArray[np.int64] | slice


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor of the file, and which of its rows in which order (None: all) are the canonical tensor."""

    key: str
    rows: Rows | None


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """A GGUF file with its header read; see `seqrt.exporter.checkpoints.Checkpoint`."""

    file: GgufFile
    config: DecoderConfig
    sources: Mapping[str, _Source]

    @property
    def name(self) -> str:
        """What the file calls itself, or its own name."""
        return " ".join(str(self.file.metadata.get("general.name") or self.file.path.stem).split())

    @property
    def files(self) -> list[Path]:
        """The one file."""
        return [self.file.path]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Declared end tokens, and the vocabulary's own ends of a turn."""
        metadata = self.file.metadata
        ids = [metadata[key] for key in _END_KEYS if key in metadata]
        lists = (metadata.get(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "token_type"))
        pairs = enumerate(zip(*lists, strict=False))
        ids += [index for index, (token, kind) in pairs if kind == _CONTROL and token in _TURN_ENDS]
        return tuple(dict.fromkeys(ids))

    @property
    def bos_token_id(self) -> int | None:
        """Token that begins a text, if the file names one."""
        return self.file.metadata.get("tokenizer.ggml.bos_token_id")

    @property
    def chat_template(self) -> str | None:
        """Jinja source, if the file has one."""
        return self.file.metadata.get("tokenizer.chat_template")

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self.sources)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor, float32."""
        source = self.sources[name]
        values = self.file.tensor(source.key)
        return values if source.rows is None else values[source.rows]

    def blocks(self, name: str) -> QuantBlocks | None:
        """Read one tensor as the file quantised it; None for plain numbers and Q6_K."""
        source = self.sources[name]
        blocks = self.file.blocks(source.key)
        return blocks if blocks is None or source.rows is None else blocks.rows(source.rows)

    def is_quantized(self, name: str) -> bool:
        """Whether the tensor is in blocks of few bits, Q6_K included."""
        return self.file.tensors[self.sources[name].key].kind.name not in FLOAT_TYPES

    def tokenizer_json(self) -> str | None:
        """The file's tokenizer, converted."""
        return tokenizer_json(self.file.metadata)


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF file; reads its header only.

    Raises:
        CheckpointError: the file is damaged, its architecture or a value is not supported, or metadata and
            tensors disagree.
    """
    file = read_gguf(path)
    config = decoder_config(file)
    return GgufCheckpoint(file, config, _sources(file, config))


def _sources(file: GgufFile, config: DecoderConfig) -> dict[str, _Source]:
    """Source of every canonical tensor, each checked to be there in the shape that the metadata say."""
    architecture = file.metadata["general.architecture"]
    modules = _GPT2 if architecture == "gpt2" else _MODULES
    sources = {}
    for name, shape in canonical_shapes(config).items():
        key = source_name(name, modules, "blk.{}.")
        rows = _rows(architecture, name, config)
        fused = isinstance(rows, slice)
        expected = (shape[0] * 3, *shape[1:]) if fused else shape
        if key not in file.tensors:
            raise CheckpointError(f"tensor {key} is missing from {file.path}; download it again")
        if file.tensors[key].shape != expected:
            raise CheckpointError(
                f"tensor {key} has shape {list(file.tensors[key].shape)}, the metadata ask for "
                f"{list(expected)}; convert {file.path} again"
            )
        sources[name] = _Source(key, rows)
    left = sorted(file.tensors.keys() - {source.key for source in sources.values()} - {ROPE_FACTORS})
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"tensor {left[0]}{more} has no place in a {architecture} model; it is not supported")
    return sources


def _rows(architecture: str, name: str, config: DecoderConfig) -> Rows | None:
    """Rows of canonical tensor `name` where the converter fused (GPT-2's q, k and v) or reordered them.

    The llama converter interleaves the two halves of every head of q and k, to rotate neighbouring pairs.
    """
    part = next((part for part in "qkv" if f".attention.{part}." in name), None)
    if architecture == "gpt2" and part:
        width = config.num_heads * config.head_dim
        return slice("qkv".index(part) * width, ("qkv".index(part) + 1) * width)
    if architecture != "llama" or part not in ("q", "k"):
        return None
    num_heads = config.num_heads if part == "q" else config.num_kv_heads
    stored = np.arange(num_heads * config.head_dim).reshape(num_heads, config.head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)
