"""Pointer models restated in torch, from the papers and the layouts of their projects: what seqrt is compared with.

Each has parameters under the names that its project saves, and `tour(points)`, the log-probabilities of every step of
greedy decoding `[n, n]` (of the paper's network with a row of the end), written with torch's own modules, an instance
at a time, without padding, caches or folding.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PtrNet(nn.Module):
    """gchaperon/pointer-networks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder = (nn.LSTM(2, dim, batch_first=True) for _ in range(2))
        self.start_symbol = nn.Parameter(torch.randn(2))
        self.end_symbol, self.encoder_c_0 = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))
        self.attention = nn.Module()
        for name in ("W1", "W2"):
            self.attention.register_parameter(name, nn.Parameter(torch.randn(dim, dim) / dim**0.5))
        self.attention.v = nn.Parameter(torch.randn(dim))

    def steps(self, points: Tensor, order: list[int]) -> Tensor:
        """Log-probabilities before each output of `order` and behind it: slot 0 is the end, points count from 1."""
        begin = (self.end_symbol[None, None], self.encoder_c_0[None, None])
        encoded, state = self.encoder(points[None], begin)
        slots = torch.cat([self.end_symbol[None], encoded[0]])
        inputs = torch.cat([self.start_symbol[None], points[[slot - 1 for slot in order]]])
        hidden, _ = self.decoder(inputs[None], state)
        first, second, v = (getattr(self.attention, name) for name in ("W1", "W2", "v"))
        return torch.log_softmax(torch.tanh((slots @ first)[None] + (hidden[0] @ second)[:, None]) @ v, 1)


class GlimpsePtrNet(nn.Module):
    """PointerNetworkPolicy of RL4CO, `model: pointer` of attention-learn-to-route."""

    encoder: Any
    decoder: Any

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.decoder_in_0 = nn.Parameter(torch.randn(dim))
        self.embedding = nn.Parameter(torch.randn(2, dim))
        self.encoder = nn.Module()
        self.encoder.lstm = nn.LSTM(dim, dim)
        self.encoder.init_hx, self.encoder.init_cx = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))
        self.decoder = nn.Module()
        self.decoder.lstm = nn.LSTMCell(dim, dim)
        for name in ("pointer", "glimpse"):
            part = nn.Module()
            part.v = nn.Parameter(torch.randn(dim))
            part.project_query, part.project_ref = nn.Linear(dim, dim), nn.Conv1d(dim, dim, 1)
            setattr(self.decoder, name, part)

    def tour(self, points: Tensor) -> Tensor:
        """As the module says."""
        inputs = points @ self.embedding
        encoded, (hidden, cell) = self.encoder.lstm(inputs[:, None])
        hidden, cell = hidden[0], cell[0]
        entering: Tensor = self.decoder_in_0
        visited = torch.zeros(len(points), dtype=torch.bool)
        found = []
        for _ in range(len(points)):
            hidden, cell = self.decoder.lstm(entering[None], (hidden, cell))
            refs, scores = self._scores("glimpse", encoded, hidden)
            query = torch.softmax(scores.masked_fill(visited, -math.inf), 0) @ refs
            _, scores = self._scores("pointer", encoded, query[None])
            found.append(torch.log_softmax((10 * torch.tanh(scores)).masked_fill(visited, -math.inf), 0))
            place = int(found[-1].argmax())
            visited[place], entering = True, inputs[place]
        return torch.stack(found)

    def _scores(self, name: str, encoded: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        part = getattr(self.decoder, name)
        refs = part.project_ref(encoded.permute(1, 2, 0))[0].T
        return refs, torch.tanh(refs + part.project_query(query)) @ part.v


class Attention(nn.Module):
    """The attention model: a function of roles, which each project's layout names differently."""

    num_heads = 4
    encoder: Any
    decoder: Any
    embedder: Any
    begins: int | None = None  # where the tour has to begin

    def tour(self, points: Tensor) -> Tensor:
        """As the module says."""
        embedded = self.encode(points)
        visited = torch.zeros(len(points), dtype=torch.bool)
        order: list[int] = []
        found = []
        for _ in range(len(points)):
            scores = self.scores(embedded, order, visited)
            if self.begins is not None and not order:
                scores = torch.full_like(scores, -math.inf).index_fill(0, torch.tensor([self.begins]), 0.0)
            found.append(torch.log_softmax(scores.masked_fill(visited, -math.inf), 0))
            order.append(int(found[-1].argmax()))
            visited[order[-1]] = True
        return torch.stack(found)

    def encode(self, points: Tensor) -> Tensor:
        """`[n, D]`."""
        raise NotImplementedError

    def scores(self, embedded: Tensor, order: list[int], visited: Tensor) -> Tensor:
        """Of the next point, `[n]`."""
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visited: Tensor | None = None) -> Tensor:
        """Attention of several heads, `[m, D]` over `[n, D]`."""
        parts = [part.unflatten(1, (self.num_heads, -1)).transpose(0, 1) for part in (query, key, value)]
        mask = None if visited is None else ~visited
        made = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        return made.transpose(0, 1).flatten(1)


def norm_of(kind: str, dim: int) -> nn.Module:
    """One with statistics, or one over the points."""
    if kind == "layer":
        return nn.Module()
    norm = nn.BatchNorm1d(dim) if kind == "batch" else nn.InstanceNorm1d(dim, affine=True)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    if kind == "batch":
        norm.running_mean = torch.randn(dim)
        norm.running_var = torch.rand(dim) + 0.5
    return norm


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """`[n, D]`; what has no parameters is RL4CO's norm over all of an instance."""
    if isinstance(norm, nn.InstanceNorm1d):
        return norm(x.T[None])[0].T
    return norm(x) if isinstance(norm, nn.BatchNorm1d) else (x - x.mean()) / torch.sqrt(x.var() + 1e-5)


class Kool(Attention):
    """attention-learn-to-route."""

    def __init__(self, dim: int = 32, ffn: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.W_placeholder = nn.Parameter(torch.randn(2 * dim))
        self.init_embed = nn.Linear(2, dim)
        self.embedder = nn.Module()
        heads, width = self.num_heads, dim // self.num_heads
        made = []
        for _ in range(layers):
            attention = nn.Module()
            for name in ("W_query", "W_key", "W_val"):
                attention.register_parameter(name, nn.Parameter(torch.randn(heads, dim, width) / dim**0.5))
            attention.W_out = nn.Parameter(torch.randn(heads, width, dim) / dim**0.5)
            feed = nn.Sequential(nn.Linear(dim, ffn), nn.ReLU(), nn.Linear(ffn, dim))
            made.append(
                nn.ModuleList([_skipping(attention), _norm("batch", dim), _skipping(feed), _norm("batch", dim)])
            )
        self.embedder.layers = nn.ModuleList(made)
        self.project_node_embeddings = nn.Linear(dim, 3 * dim, bias=False)
        self.project_fixed_context = nn.Linear(dim, dim, bias=False)
        self.project_step_context = nn.Linear(2 * dim, dim, bias=False)
        self.project_out = nn.Linear(dim, dim, bias=False)

    def encode(self, points: Tensor) -> Tensor:
        """`[n, D]`."""
        x = self.init_embed(points)
        for attention, norm1, feed, norm2 in self.embedder.layers:
            part: Any = attention.module
            heads = []
            for query, key, value, out in zip(part.W_query, part.W_key, part.W_val, part.W_out, strict=True):
                weights = torch.softmax(x @ query @ (x @ key).T / query.shape[1] ** 0.5, 1)
                heads.append(weights @ (x @ value) @ out)
            x = normed(norm1.normalizer, x + sum(heads))
            x = normed(norm2.normalizer, x + feed.module(x))
        return x

    def scores(self, embedded: Tensor, order: list[int], visited: Tensor) -> Tensor:
        """Of the next point, `[n]`."""
        context = torch.cat([embedded[order[0]], embedded[order[-1]]]) if order else self.W_placeholder
        query = self.project_fixed_context(embedded.mean(0)) + self.project_step_context(context)
        key, value, pointer = self.project_node_embeddings(embedded).chunk(3, 1)
        glimpse = self.project_out(self.attend(query[None], key, value, visited))[0]
        return 10 * torch.tanh(pointer @ glimpse / embedded.shape[1] ** 0.5)


class Rl4co(Attention):
    """AttentionModelPolicy of RL4CO 0.5 to 0.7."""

    def __init__(self, dim: int = 32, ffn: int = 48, layers: int = 2, norm: str = "batch", bias: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.init_embedding, self.encoder.net = nn.Module(), nn.Module()
        self.encoder.init_embedding.init_embed = nn.Linear(2, dim)
        made = []
        for _ in range(layers):
            attention, feed = nn.Module(), nn.Module()
            attention.Wqkv, attention.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            feed.lins = nn.ModuleList([nn.Linear(dim, ffn), nn.Linear(ffn, dim)])
            made.append(nn.ModuleList([_skipping(attention), _norm(norm, dim), _skipping(feed), _norm(norm, dim)]))
        self.encoder.net.layers = nn.ModuleList(made)
        self.decoder.context_embedding, self.decoder.pointer = nn.Module(), nn.Module()
        self.decoder.context_embedding.W_placeholder = nn.Parameter(torch.randn(2 * dim))
        self.decoder.context_embedding.project_context = nn.Linear(2 * dim, dim, bias=False)
        self.decoder.project_node_embeddings = nn.Linear(dim, 3 * dim, bias=bias)
        self.decoder.project_fixed_context = nn.Linear(dim, dim, bias=bias)
        self.decoder.pointer.project_out = nn.Linear(dim, dim, bias=bias)

    def encode(self, points: Tensor) -> Tensor:
        """`[n, D]`."""
        x = self.encoder.init_embedding.init_embed(points)
        for attention, norm1, feed, norm2 in self.encoder.net.layers:
            part = attention.module
            x = normed(norm1.normalizer, x + part.out_proj(self.attend(*part.Wqkv(x).chunk(3, 1))))
            first, second = feed.module.lins
            x = normed(norm2.normalizer, x + second(torch.relu(first(x))))
        return x

    def scores(self, embedded: Tensor, order: list[int], visited: Tensor) -> Tensor:
        """Of the next point, `[n]`."""
        embedding = self.decoder.context_embedding
        context = torch.cat([embedded[order[0]], embedded[order[-1]]]) if order else embedding.W_placeholder
        query = self.decoder.project_fixed_context(embedded.mean(0)) + embedding.project_context(context)
        key, value, pointer = self.decoder.project_node_embeddings(embedded).chunk(3, 1)
        glimpse = self.decoder.pointer.project_out(self.attend(query[None], key, value, visited))[0]
        return 10 * torch.tanh(pointer @ glimpse / embedded.shape[1] ** 0.5)


class Pomo(Attention):
    """POMO's TSPModel; it begins where it is told to."""

    begins = 0

    def __init__(self, dim: int = 32, ffn: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.embedding = nn.Linear(2, dim)
        made = []
        for _ in range(layers):
            layer = nn.Module()
            for name in ("Wq", "Wk", "Wv"):
                setattr(layer, name, nn.Linear(dim, dim, bias=False))
            layer.multi_head_combine, layer.feedForward = nn.Linear(dim, dim), nn.Module()
            layer.feedForward.W1, layer.feedForward.W2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
            for name in ("addAndNormalization1", "addAndNormalization2"):
                norm = nn.Module()
                norm.norm = norm_of("instance", dim)
                setattr(layer, name, norm)
            made.append(layer)
        self.encoder.layers = nn.ModuleList(made)
        for name in ("Wq_first", "Wq_last", "Wk", "Wv"):
            setattr(self.decoder, name, nn.Linear(dim, dim, bias=False))
        self.decoder.multi_head_combine = nn.Linear(dim, dim)

    def encode(self, points: Tensor) -> Tensor:
        """`[n, D]`."""
        x = self.encoder.embedding(points)
        for layer in self.encoder.layers:
            attended = layer.multi_head_combine(self.attend(layer.Wq(x), layer.Wk(x), layer.Wv(x)))
            x = normed(layer.addAndNormalization1.norm, x + attended)
            fed = layer.feedForward.W2(torch.relu(layer.feedForward.W1(x)))
            x = normed(layer.addAndNormalization2.norm, x + fed)
        return x

    def scores(self, embedded: Tensor, order: list[int], visited: Tensor) -> Tensor:
        """Of the next point, `[n]`."""
        if not order:
            return torch.zeros(len(embedded))
        part = self.decoder
        query = part.Wq_first(embedded[order[0]]) + part.Wq_last(embedded[order[-1]])
        heads = self.attend(query[None], part.Wk(embedded), part.Wv(embedded), visited)
        return 10 * torch.tanh(embedded @ part.multi_head_combine(heads)[0] / embedded.shape[1] ** 0.5)


def _skipping(module: nn.Module) -> nn.Module:
    made = nn.Module()
    made.module = module
    return made


def _norm(kind: str, dim: int) -> nn.Module:
    made = nn.Module()
    if kind != "layer":
        made.normalizer = norm_of(kind, dim)
    else:
        made.normalizer = nn.Module()
    return made
