"""NRTR's decoder (arXiv 1806.00926) on SVTR's encoder: a word character by character, the way CPPD does not read.

A post-norm transformer decoder: each layer attends to the characters so far, reads the visual tokens, and has an MLP
with ReLU. Keys and values of the visual tokens are made once an image; a step computes one character and writes its
own keys and values into caches of a fixed size. Class 0 ends a word and begins none; a token beyond the classes does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqrt.graphs.cppd import IGNORED, MAX_LENGTH
from seqrt.graphs.decoder import Linear
from seqrt.graphs.ops import tensor_scatter
from seqrt.graphs.svtr import HEAD_DIM, CrossAttention, SelfAttention, Svtr, SvtrConfig, attend, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class NrtrConfig:
    """The shape of an autoregressive recogniser.

    Attributes:
        encoder: of its encoder.
        num_classes: C, the end of a word and the characters.
        num_layers: of the decoder.
        max_length: most characters of a word.
    """

    encoder: SvtrConfig
    num_classes: int
    num_layers: int
    max_length: int = MAX_LENGTH

    @property
    def num_steps(self) -> int:
        """Characters and the end; also rows of the caches."""
        return self.max_length + 1

    @property
    def begin(self) -> int:
        """The token that begins every word; the one after it pads, in upstream's checkpoints."""
        return self.num_classes

    @property
    def num_heads(self) -> int:
        """Of every attention."""
        return self.encoder.dims[-1] // HEAD_DIM


class NrtrLayer(nn.Module):
    """Self-attention, cross-attention, MLP; a norm after each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.own, self.cross = SelfAttention(dim), CrossAttention(dim)
        self.fc1, self.fc2 = Linear(dim, 4 * dim, bias=True), Linear(4 * dim, dim, bias=True)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, cross_key: Tensor, cross_value: Tensor
    ) -> Tensor:
        """`[B, rows, D]` to the same; query, key and value are its own projections, the latter two with those before.

        `mask` is float, 0 where a row is seen, -inf elsewhere.
        """
        x = self.norm1(x + self.own.proj(attend(query, key, value, mask)))
        x = self.norm2(x + self.cross.look(x, cross_key, cross_value))
        return self.norm3(x + self.fc2(functional.relu(self.fc1(x))))  # type: ignore[no-any-return]


class NrtrDecoder(nn.Module):
    """Embedding, layers and output layer."""

    def __init__(self, config: NrtrConfig) -> None:
        super().__init__()
        dim = config.encoder.dims[-1]
        self.embedding = nn.Embedding(config.num_classes + 2, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.layers = nn.ModuleList(NrtrLayer(dim) for _ in range(config.num_layers))
        self.classes = Linear(dim, config.num_classes, bias=False)
        self.register_buffer("positions", _sinusoids(config.num_steps, dim), persistent=False)

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Tokens at positions, both `[..., rows]`, to `[..., rows, D]`."""
        table: Tensor = self.get_buffer("positions").to(self.embedding.weight.dtype)
        return self.embedding(token_ids) * table.shape[1] ** 0.5 + table[positions]  # type: ignore[no-any-return]

    def logits(self, visual: Tensor, token_ids: Tensor) -> Tensor:
        """All steps at once, for training: `[B, S, D]` and the characters before each step `[B, steps]`."""
        steps = token_ids.shape[1]
        mask = torch.full((steps, steps), -torch.inf, dtype=visual.dtype, device=visual.device).triu(1)
        x = self.embed(token_ids, torch.arange(steps, device=visual.device))
        for layer in self.layers:
            x = layer(x, *layer.own.project(x), mask, *layer.cross.project(visual))  # type: ignore[operator,union-attr]
        return self.classes(x)  # type: ignore[no-any-return]


class Nrtr(nn.Module):
    """The recogniser: an encoder and a decoder that says a character a step."""

    def __init__(self, config: NrtrConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Svtr(config.encoder)
        self.decoder = NrtrDecoder(config)
        initialise(self)

    def loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each character and of the end, given those before.

        Args:
            visual: `[B, S, D]`, of the encoder.
            labels: int64 `[B, steps]`: the word's classes, 0, then IGNORED.
        """
        begin = labels.new_full((len(labels), 1), self.config.begin)
        before = torch.cat([begin, labels[:, :-1].clamp(min=0)], 1)
        logits = self.decoder.logits(visual, before)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    def fold(self) -> "Nrtr":
        """Makes it what is exported. Returns itself."""
        self.encoder.fuse()
        return self.eval()


class NrtrEncoder(nn.Module):
    """What is computed once an image: keys and values of the visual tokens for each layer."""

    def __init__(self, model: Nrtr) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.cross = nn.ModuleList(layer.cross for layer in model.decoder.layers)  # type: ignore[misc]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Float `[B, 3, H, W]` to key and value of layer 0, of layer 1 and so on, `[B, heads, S, 32]` each."""
        visual = self.encoder(image)
        return tuple(made.float() for cross in self.cross for made in cross.project(visual))  # type: ignore[operator]


class NrtrStep(nn.Module):
    """One character of every word of a batch."""

    def __init__(self, model: Nrtr) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, token_ids: Tensor, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The next character's probabilities, and the caches with a row more.

        Args:
            token_ids: int64 `[B]`, the character before.
            position: int64 `[B]`, how many were before that; the same for all words.
            *tensors: of each layer past key and value `[B, heads, steps, 32]`; then of each layer `NrtrEncoder`'s key
                and value.

        Returns:
            Float32 `[B, C]`, then the caches of each layer.
        """
        x = self.decoder.embed(token_ids, position)[:, None]
        past, cross = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        rows = torch.arange(past[0].shape[2], device=x.device)
        seen = torch.zeros(1, dtype=x.dtype, device=x.device)
        mask = torch.where(rows <= position[:1, None], seen, seen - math.inf)
        present = []
        for i, layer in enumerate(self.decoder.layers):
            query, key, value = layer.own.project(x)  # type: ignore[operator,union-attr]
            key = tensor_scatter(past[2 * i], key, position)
            value = tensor_scatter(past[2 * i + 1], value, position)
            present += [key, value]
            read = (part.to(x.dtype) for part in cross[2 * i : 2 * i + 2])
            x = layer(x, query, key, value, mask, *read)
        return torch.softmax(self.decoder.classes(x[:, 0]).float(), -1), *present


def _sinusoids(rows: int, dim: int) -> Tensor:
    """The transformer's positions, sines in even columns and cosines in odd ones (arXiv 1706.03762, section 3.5)."""
    angles = torch.arange(rows)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
