"""Read, process, write (Order Matters, arXiv 1511.06391, section 4.2): a set as input, whose order makes no difference.

    read      m_i = MLP(x_i)
    process   q, c = LSTM(q*);  a = softmax(m_i . q);  r = sum a_i m_i;  q* = [q, r]        several times
    write     a pointer network that starts from q*

The LSTM of the process has no input: q*, twice as wide as its cell, is what it remembers. Its steps are unrolled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrt.graphs.decoder import Linear
from seqrt.graphs.pointing import FAR_BELOW, LstmPointerModel, PointerDecoder, gated, is_point


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig:
    """The shape of a set model.

    Attributes:
        dim: D.
        input_dim: numbers of an element.
        num_process: steps of the process; 0 starts from nothing.
        has_end: it points at an end.
        has_glimpse: it looks once before it points.
    """

    dim: int
    input_dim: int = 1
    num_process: int = 5
    has_end: bool = False
    has_glimpse: bool = True


class ReadProcessWrite(LstmPointerModel):
    """The set model."""

    def __init__(self, config: SetConfig) -> None:
        super().__init__()
        self.config, self.input_dim = config, config.input_dim
        dim = config.dim
        self.read1, self.read2 = Linear(config.input_dim, dim, bias=True), Linear(dim, dim, bias=True)
        self.process = Linear(2 * dim, 4 * dim, bias=True)
        self.first_hidden, self.first_cell = Linear(2 * dim, dim, bias=True), Linear(2 * dim, dim, bias=True)
        self.decoder = PointerDecoder(dim, dim, has_end=config.has_end, has_glimpse=config.has_glimpse, clip=0.0)

    def encode(self, points: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """As `PointerModel.encode`."""
        elements = self.read2(torch.relu(self.read1(points)))
        inside = is_point(length, points.shape[1])
        cell = torch.zeros_like(elements[:, 0])
        state = torch.cat([cell, cell], 1)
        for _ in range(self.config.num_process):
            query, cell = gated(self.process(state), cell)
            products = (elements @ query[..., None])[..., 0]
            weights = torch.softmax(torch.where(inside, products, FAR_BELOW), 1)
            state = torch.cat([query, (weights[:, None] @ elements)[:, 0]], 1)
        first = torch.tanh(self.first_hidden(state)), torch.tanh(self.first_cell(state))
        return self.decoder.prepare(elements, elements, *first)
