"""Pointer networks (arXiv 1506.03134): an LSTM reads the points, another one points at them.

    e_j, state = LSTM(x_j; state)                          points in the order given
    u_j = v . tanh(W1 e_j + W2 d),  p = softmax(u)         d: the hidden state of the LSTM that points
                                                           its next input is the point that was pointed at

The encoder's recurrence is unrolled over the places of a bucket: no loop is left in the graph. Padded places keep the
state of the last point, so that padding is exact. `attention-learn-to-route` and RL4CO have a variant of it that embeds
the points, looks at them once before it points (the glimpse), bounds its scores, and knows no end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqrt.graphs.decoder import Linear
from seqrt.graphs.pointing import Cell, LstmPointerModel, PointerDecoder, is_point


@dataclass(frozen=True, slots=True, kw_only=True)
class PtrNetConfig:
    """The shape of a pointer network.

    Attributes:
        dim: D, of both LSTMs.
        input_dim: numbers of a point.
        is_embedded: points are embedded in D dimensions before the LSTMs read them.
        has_end: it points at an end.
        has_glimpse: it looks once before it points.
        clip: bound of the scores; 0 for none.
    """

    dim: int
    input_dim: int = 2
    is_embedded: bool = False
    has_end: bool = True
    has_glimpse: bool = False
    clip: float = 0.0


class PtrNet(LstmPointerModel):
    """The pointer network."""

    def __init__(self, config: PtrNetConfig) -> None:
        super().__init__()
        self.config, self.input_dim = config, config.input_dim
        read = config.dim if config.is_embedded else config.input_dim
        self.embedding = Linear(config.input_dim, config.dim, bias=False) if config.is_embedded else None
        self.input, self.cell = Linear(read, 4 * config.dim, bias=True), Cell(config.dim)
        self.first_hidden, self.first_cell = (nn.Parameter(torch.zeros(config.dim)) for _ in range(2))
        self.decoder = PointerDecoder(
            read, config.dim, has_end=config.has_end, has_glimpse=config.has_glimpse, clip=config.clip
        )

    def encode(self, points: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """As `PointerModel.encode`."""
        count = points.shape[1]
        inputs = points if self.embedding is None else self.embedding(points)
        projected, inside = self.input(inputs), is_point(length, count)
        hidden, cell = (first.expand(points.shape[0], -1) for first in (self.first_hidden, self.first_cell))
        encoded = []
        for place in range(count):
            after = self.cell(projected[:, place], hidden, cell)
            is_inside = inside[:, place, None]
            hidden, cell = (torch.where(is_inside, new, old) for new, old in zip(after, (hidden, cell), strict=True))
            encoded.append(hidden)
        return self.decoder.prepare(inputs, torch.stack(encoded, 1), hidden, cell)
