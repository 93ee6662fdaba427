"""The attention model (arXiv 1803.08475), also as POMO trains it (arXiv 2010.16011): a transformer reads, then points.

    h = encoder(points)                                             no order, no positions
    q = graph(mean h) + first(h_first) + last(h_last)               of the tour so far
    g = attention of q over those h that are allowed                the glimpse, several heads
    p = softmax(10 tanh(g . key(h) / sqrt D))                       over those allowed

All that does not depend on the step is computed once, by one matrix: both halves of the query become tables, with a
row more for the start, and the glimpse's output projection is part of the keys that it is compared with.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from seqrt.graphs.decoder import Linear
from seqrt.graphs.pointing import FAR_BELOW, PointerModel, chosen, is_point, rows

NormKind = Literal["batch", "instance", "layer"]
NORMS: Final[tuple[str, ...]] = get_args(NormKind)
TABLES: Final = ("first", "last", "key", "value", "pointer")  # what one product makes of the embeddings, and the bias
_EPSILON: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionModelConfig:
    """The shape of an attention model.

    Attributes:
        dim: D, of the embeddings.
        num_heads: of every attention.
        ffn_dim: of the encoder's feed-forward layers.
        num_layers: of the encoder.
        norm: "batch" with fixed statistics; "instance", over the points of each channel; "layer", over all of both.
        clip: bound of the scores.
    """

    dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    norm: NormKind
    clip: float = 10.0
    input_dim: int = 2


class Norm(nn.Module):
    """Scale and shift, after the moments of an instance are taken out if it has any of its own."""

    def __init__(self, dim: int, kind: NormKind) -> None:
        super().__init__()
        self.kind = kind
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """`[B N, D]`, and float `[B, N, 1]`, 1 where there is a point."""
        if self.kind != "batch":
            points = x.reshape(*inside.shape[:2], -1)
            x = _standard(points.float(), inside.float(), self.kind).to(x.dtype).flatten(0, 1)
        return x * self.scale + self.shift


def _standard(x: Tensor, inside: Tensor, kind: NormKind) -> Tensor:
    """Without the moments of the points. RL4CO's layer norm divides by one less than the count."""
    count = inside.sum(1, keepdim=True)
    mean = (x * inside).sum(1, keepdim=True) / count
    if kind == "layer":
        mean = mean.mean(2, keepdim=True)
    squares = ((x - mean) ** 2 * inside).sum(1, keepdim=True)
    dim = x.shape[2]
    variance = squares / count if kind == "instance" else squares.sum(2, keepdim=True) / (count * dim - 1)
    return (x - mean) / torch.sqrt(variance + _EPSILON)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward layer; a norm after each.

    Points of all instances are rows of one matrix: engines then add a bias, and the ReLU, within the product.
    """

    def __init__(self, config: AttentionModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv, self.out = Linear(config.dim, 3 * config.dim, bias=True), Linear(config.dim, config.dim, bias=True)
        self.fc1, self.fc2 = (
            Linear(config.dim, config.ffn_dim, bias=True),
            Linear(config.ffn_dim, config.dim, bias=True),
        )
        self.norm1, self.norm2 = Norm(config.dim, config.norm), Norm(config.dim, config.norm)

    def forward(self, x: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
        """`[B N, D]` to the same; `inside` as for `Norm`, `mask` `[B, 1, 1, N]` is added to the products."""
        parts = split_heads(self.qkv(x).reshape(*inside.shape[:2], -1), 3 * self.num_heads)
        query, key, value = parts.chunk(3, 1)
        products = query @ key.transpose(2, 3) * (x.shape[1] // self.num_heads) ** -0.5
        weights = torch.softmax(products + mask, -1)
        x = self.norm1(x + self.out(join_heads(weights @ value).flatten(0, 1)), inside)
        return self.norm2(x + self.fc2(torch.relu(self.fc1(x))), inside)  # type: ignore[no-any-return]


class AttentionModel(PointerModel):
    """The attention model. It points n times at n points, and knows no end."""

    memory_names = ("first", "last", "key", "value", "pointer", "bias")
    state_names = ("first",)
    has_end = False

    def __init__(self, config: AttentionModelConfig) -> None:
        super().__init__()
        self.config, self.input_dim = config, config.input_dim
        dim = config.dim
        self.embedding = Linear(config.input_dim, dim, bias=True)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.tables = Linear(dim, len(TABLES) * dim + 1, bias=True)
        self.graph = Linear(dim, dim, bias=True)
        self.start = nn.Parameter(torch.randn(2, dim))  # in the tables of queries, for the slot that is no point

    def encode(self, points: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """As `PointerModel.encode`."""
        heads, dim = self.config.num_heads, self.config.dim
        is_inside = is_point(length, points.shape[1])
        inside = is_inside[..., None].to(points.dtype)
        mask = torch.where(is_inside, 0.0, FAR_BELOW).to(points.dtype)[:, None, None]
        x = self.embedding(points.flatten(0, 1))
        for layer in self.layers:
            x = layer(x, inside, mask)
        embedded = x.reshape(*inside.shape[:2], dim)
        graph = self.graph((inside / inside.sum(1, keepdim=True)).transpose(1, 2) @ embedded)
        none = torch.nn.functional.pad(self.start.flatten(), (0, 3 * dim + 1))
        tables = self.tables(x).reshape(*inside.shape[:2], -1)
        tables = torch.cat([tables, none.expand(points.shape[0], 1, -1)], 1)
        first, last, key, value, pointer, bias = torch.split(tables, [dim] * len(TABLES) + [1], -1)
        key, value = split_heads(key, heads).transpose(2, 3) * (dim // heads) ** -0.5, split_heads(value, heads)
        return first, last + graph, key, value, pointer.transpose(1, 2) * dim**-0.5, bias.transpose(1, 2)

    def begin(self, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As `PointerModel.begin`."""
        return (torch.zeros(memory[0].shape[0], 1, dtype=torch.int64, device=memory[0].device),)

    def follow(self, points: Tensor, length: Tensor, labels: Tensor, allowed: Tensor) -> Tensor:
        """As `PointerModel.follow`, all outputs at once: nothing but the first and the last one is remembered."""
        none = torch.full_like(labels[:, :1], points.shape[1])
        places = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        begun = torch.cat([none, labels[:, :1].expand_as(labels[:, 1:])], 1)
        previous = torch.cat([none, labels[:, :-1]], 1)
        return self.step(previous, places, allowed, (begun,), self.encode(points, length))[0]

    def step(
        self,
        previous: Tensor,
        parent: Tensor,
        allowed: Tensor,
        state: tuple[Tensor, ...],
        memory: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `PointerModel.step`; the state is the slot that the row began with."""
        firsts, lasts, key, value, pointer, bias = memory
        none = firsts.shape[1] - 1
        first = torch.gather(state[0], 1, parent)
        first = torch.where(torch.maximum(previous, first) == none, previous, first)  # at a start, or behind it
        query = split_heads(rows(firsts, first) + rows(lasts, previous), self.config.num_heads)
        products = torch.where(allowed[:, None], query @ key, FAR_BELOW)
        glimpse = join_heads(torch.softmax(products, -1) @ value)
        return chosen(glimpse @ pointer + bias, allowed, self.config.clip), (first,)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, rows, D]` to `[B, heads, rows, D / heads]`."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """`[B, heads, rows, d]` to `[B, rows, heads d]`."""
    return x.transpose(1, 2).flatten(2)
