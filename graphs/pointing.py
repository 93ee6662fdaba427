"""The contract of pointer models, whose outputs are places of their inputs: one graph an instance, one an output.

    encode(points, length)                          -> memory
    step(previous, parent, allowed, state, memory)  -> log-probabilities, state

Of N points there are N + 1 slots. The last slot is none of the points: as `previous` it says that nothing was pointed
at yet, as an output it ends the answer of a model that says where it ends, and it is what a finished row points at.
B instances have K rows each, hypotheses of a beam, samples or starts. A row goes on from row `parent` of its instance;
at a start the state is the one that the memory holds. `allowed` is True where a row may point: padded points are never
allowed, and at least one slot always is.
"""

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn

from seqrt.graphs.decoder import Linear

FAR_BELOW: Final = -1e4  # a masked product before a softmax: within what fp16 holds, and exactly 0 behind it


class PointerModel(nn.Module, ABC):
    """A model of that contract; every tensor of its memory begins with B, of its state with B, K.

    Attributes:
        input_dim: numbers of a point.
        has_end: whether it says where an answer ends.
        memory_names, state_names: of the tensors, in their order.
    """

    input_dim: int
    has_end: bool
    memory_names: tuple[str, ...]
    state_names: tuple[str, ...]

    @abstractmethod
    def encode(self, points: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """What is computed once an instance.

        Args:
            points: `[B, N, input_dim]`.
            length: int64 `[B]`; points behind it are padding, whose values make no difference.
        """

    @abstractmethod
    def step(
        self,
        previous: Tensor,
        parent: Tensor,
        allowed: Tensor,
        state: tuple[Tensor, ...],
        memory: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One output of every row.

        Args:
            previous: int64 `[B, K]`, the slot that the row pointed at before; N at a start.
            parent: int64 `[B, K]`, the row of the same instance that it goes on from.
            allowed: bool `[B, K, N + 1]`.
            state: of the step before; at a start any numbers, and any slots.
            memory: of `encode`.

        Returns:
            Float32 log-probabilities `[B, K, N + 1]`, -inf where not allowed; the state of these rows.
        """

    def follow(self, points: Tensor, length: Tensor, labels: Tensor, allowed: Tensor) -> Tensor:
        """Log-probabilities along answers that are given, for training.

        Args:
            points: `[B, N, input_dim]`.
            length: int64 `[B]`.
            labels: int64 `[B, T]`, slots; what is behind an answer's end makes no difference.
            allowed: bool `[B, T, N + 1]`, before each of them.

        Returns:
            `[B, T, N + 1]`.
        """
        memory = self.encode(points, length)
        previous = torch.cat([torch.full_like(labels[:, :1], points.shape[1]), labels[:, :-1]], 1)
        parent = torch.zeros_like(labels[:, :1])
        state = self.begin(memory)
        found = []
        for place in range(labels.shape[1]):
            at = slice(place, place + 1)
            made, state = self.step(previous[:, at], parent, allowed[:, at], state, memory)
            found.append(made)
        return torch.cat(found, 1)

    def begin(self, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A state of one row, which nobody reads at a start."""
        named = dict(zip(self.memory_names, memory, strict=True))
        return tuple(torch.zeros_like(named[name])[:, None] for name in self.state_names)


class Encode(nn.Module):
    """The graph of an instance: memory in float32."""

    def __init__(self, model: PointerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """As `PointerModel.encode`."""
        dtype = next(self.model.parameters()).dtype
        return tuple(made.float() for made in self.model.encode(points.to(dtype), length))


class Step(nn.Module):
    """The graph of an output; state and memory in float32 outside."""

    def __init__(self, model: PointerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, previous: Tensor, parent: Tensor, allowed: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As `PointerModel.step`; `tensors` are state and memory."""
        dtype, count = next(self.model.parameters()).dtype, len(self.model.state_names)
        held = tuple(value.to(dtype) if value.is_floating_point() else value for value in tensors)
        found, state = self.model.step(previous, parent, allowed, held[:count], held[count:])
        return found, *(value.float() if value.is_floating_point() else value for value in state)


class Additive(nn.Module):
    """Attention v . tanh(W1 e + W2 d) (arXiv 1506.03134, section 2.3); W1 e, `refs`, is computed once an instance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ref, self.query = Linear(dim, dim, bias=True), Linear(dim, dim, bias=True)
        self.v = nn.Parameter(torch.randn(dim) / dim**0.5)

    def forward(self, refs: Tensor, query: Tensor) -> Tensor:
        """`[B, S, D]` and `[B, K, D]` to `[B, K, S]`."""
        return torch.tanh(refs[:, None] + self.query(query)[:, :, None]) @ self.v


class Cell(nn.Module):
    """An LSTM cell; what enters it beside its own state is projected before. Gates are input, forget, output, new."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = Linear(dim, 4 * dim, bias=False)

    def forward(self, projected: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., 4 D]` and the state, `[..., D]` twice, to the next state."""
        return gated(projected + self.hidden(hidden), cell)


def gated(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden and cell state of an LSTM from the sums of its gates `[..., 4 D]`."""
    dim = cell.shape[-1]
    into, keep, out = torch.sigmoid(gates[..., : 3 * dim]).chunk(3, -1)
    cell = keep * cell + into * torch.tanh(gates[..., 3 * dim :])
    return out * torch.tanh(cell), cell


class PointerDecoder(nn.Module):
    """An LSTM that points: what the pointer network and the set model write with.

    Args:
        input_dim: of what it reads, the points or embeddings of them.
        dim: of its state and of what it points at.
        has_end: whether it points at an end.
        has_glimpse: whether it looks at the points with one attention before it points.
        clip: bound of the scores; 0 for none.
    """

    memory_names: Final = ("inputs", "refs", "hidden", "cell")
    state_names: Final = ("hidden", "cell")

    def __init__(self, input_dim: int, dim: int, *, has_end: bool, has_glimpse: bool, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.input, self.cell = Linear(input_dim, 4 * dim, bias=True), Cell(dim)
        self.start = nn.Parameter(torch.randn(input_dim) / input_dim**0.5)
        self.pointer = Additive(dim)
        self.end = nn.Parameter(torch.randn(dim) / dim**0.5) if has_end else None
        self.glimpse = Additive(dim) if has_glimpse else None

    def prepare(self, inputs: Tensor, encoded: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        """The memory.

        Args:
            inputs: `[B, N, input_dim]`.
            encoded: `[B, N, D]`, what it points at.
            hidden: `[B, D]`, of the state that it starts with.
            cell: `[B, D]`, likewise.
        """
        inputs = torch.cat([inputs, self.start.expand(inputs.shape[0], 1, -1)], 1)
        end = torch.zeros_like(encoded[:, :1]) if self.end is None else self.end.expand(encoded.shape[0], 1, -1)
        encoded = torch.cat([encoded, end], 1)
        made = self.input(inputs), self.pointer.ref(encoded), hidden, cell
        return made if self.glimpse is None else (*made, self.glimpse.ref(encoded))

    def step(
        self,
        previous: Tensor,
        parent: Tensor,
        allowed: Tensor,
        state: tuple[Tensor, ...],
        memory: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `PointerModel.step`."""
        inputs, refs, *first = memory[:4]
        is_start = (previous == refs.shape[1] - 1)[..., None]
        hidden, cell = (
            torch.where(is_start, begin[:, None], rows(value, parent))
            for begin, value in zip(first, state, strict=True)
        )
        hidden, cell = self.cell(rows(inputs, previous), hidden, cell)
        query = hidden
        if self.glimpse is not None:
            looks = self.glimpse(memory[4], query)
            query = torch.softmax(torch.where(allowed, looks, FAR_BELOW), -1) @ memory[4]
        return chosen(self.pointer(refs, query), allowed, self.clip), (hidden, cell)


class LstmPointerModel(PointerModel):
    """A model that writes with a `PointerDecoder`, whatever it reads with."""

    decoder: PointerDecoder
    state_names = PointerDecoder.state_names

    @property
    def has_end(self) -> bool:  # type: ignore[override]
        """Whether it says where an answer ends."""
        return self.decoder.end is not None

    @property
    def memory_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of the tensors that `PointerDecoder.prepare` makes."""
        return self.decoder.memory_names if self.decoder.glimpse is None else (*self.decoder.memory_names, "glimpse")

    def step(
        self,
        previous: Tensor,
        parent: Tensor,
        allowed: Tensor,
        state: tuple[Tensor, ...],
        memory: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `PointerModel.step`."""
        return self.decoder.step(previous, parent, allowed, state, memory)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Of each instance's table `[B, rows, D]` those that `index` `[B, K]` names: `[B, K, D]`."""
    return torch.gather(table, 1, index[..., None].expand(-1, -1, table.shape[2]))


def chosen(scores: Tensor, allowed: Tensor, clip: float) -> Tensor:
    """Log-probabilities, float32, of scores `[B, K, S]`; those not allowed are -inf."""
    scores = scores.float()
    if clip:
        scores = clip * torch.tanh(scores)
    return torch.log_softmax(torch.where(allowed, scores, -torch.inf), -1)


def is_point(length: Tensor, count: int) -> Tensor:
    """Which of `count` places hold a point: bool `[B, count]`."""
    return torch.arange(count, device=length.device) < length[:, None]
