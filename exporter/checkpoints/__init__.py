"""Source models: one reader a file format, and one canonical form that all of them yield.

Canonical weights are numpy float32, Linear weights `[out, in]`, under these names (norm biases only with
"layer" norms, projection biases as the config says):

    embed.weight  position.weight  norm.weight  head.weight (absent when tied to embed)
    pad.weight (where a model of lexical units was merged into it)
    layers.{i}.attention_norm.weight          layers.{i}.mlp_norm.weight
    layers.{i}.attention_post_norm.weight     layers.{i}.mlp_post_norm.weight
    layers.{i}.attention.{q,k,v,o}.weight     layers.{i}.attention.{q_norm,k_norm}.weight
    layers.{i}.mlp.{gate,up,down}.weight
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from seqrt.errors import CheckpointError
from seqrt.graphs.config import DecoderConfig

__all__ = ["Checkpoint", "QuantBlocks", "open_checkpoint"]

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class QuantBlocks:
    """A weight as its file quantised it: w = scale * codes + offset, in blocks of 32 along `in`.

    Attributes:
        bits: 4 for codes 0 .. 15, 8 for codes -128 .. 127.
        codes: uint8 (4 bits) or int8 (8 bits) `[out, in]`, one code an element.
        scale: float32 `[out, in/32]`.
        offset: float32 `[out, in/32]`, or None for zero.
        exact: the blocks are the file's own, not rounded to anew.
    """

    bits: Literal[4, 8]
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32] | None
    exact: bool = True

    def rows(self, selection: npt.NDArray[np.int64] | slice) -> "QuantBlocks":
        """The same blocks with their output rows chosen and ordered by `selection`."""
        offset = None if self.offset is None else self.offset[selection]
        return replace(self, codes=self.codes[selection], scale=self.scale[selection], offset=offset)

    def scaled(self, factor: np.float32) -> "QuantBlocks":
        """The blocks of the weight times `factor`, exactly so for a power of two."""
        offset = None if self.offset is None else self.offset * factor
        return replace(self, scale=self.scale * factor, offset=offset)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight itself, float32 `[out, in]`."""
        weight = self.codes.reshape(*self.scale.shape, _BLOCK).astype(np.float32)
        weight *= self.scale[..., None]
        if self.offset is not None:
            weight += self.offset[..., None]
        return weight.reshape(self.codes.shape)


class Checkpoint(Protocol):
    """An opened source model. Opening reads headers only; tensors are read one at a time, on demand."""

    @property
    def config(self) -> DecoderConfig:
        """Shape of the model."""

    @property
    def name(self) -> str:
        """Name for people: the directory's, or what the file calls itself."""

    @property
    def files(self) -> list[Path]:
        """Files that hold the weights."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation; may be empty."""

    @property
    def bos_token_id(self) -> int | None:
        """Token that begins a text, if the model has one."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source, if the model has one."""

    def names(self) -> list[str]:
        """Canonical names of all tensors."""

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor, float32; a fresh array or a read-only view of the file."""

    def blocks(self, name: str) -> QuantBlocks | None:
        """Read one tensor as the file quantised it; None when the file has no such blocks for it."""

    def is_quantized(self, name: str) -> bool:
        """Whether the file holds the tensor in blocks of few bits, be it such that `blocks` cannot give."""

    def tokenizer_json(self) -> str | None:
        """Contents of a `tokenizer.json`; None when the model has none."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face directory or a GGUF file.

    Raises:
        CheckpointError: `path` is missing, damaged, of an unknown kind, or contradicts itself.
    """
    # The readers are imported late: transformers alone takes seconds, and a GGUF file does not need it.
    if path.is_dir():
        from seqrt.exporter.checkpoints.huggingface import open_huggingface

        return open_huggingface(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        from seqrt.exporter.checkpoints.gguf import open_gguf

        return open_gguf(path)
    if path.exists():
        raise CheckpointError(f"{path} is neither a model directory nor a .gguf file; pass one of these")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and path.suffix.lower() != ".gguf":
        raise CheckpointError(
            f"{path} does not exist; if it is a Hugging Face model id, download it first with "
            f"`hf download {path} --local-dir {path.name}` and pass {path.name}"
        )
    raise CheckpointError(f"{path} does not exist; pass a model directory or a .gguf file")
