"""A causal decoder for static export: Llama, Mistral, Qwen2, Qwen3, Gemma 3 (text) and GPT-2 in one module.

One graph serves prefill, plain decoding and tree verification. The data flow of a call with T query rows:

    Frame    token ids -> embeddings; past_len, depth, ancestors -> positions, rotations, attention masks
    Layer    one a layer: attention over the cache, which it extends in place, then the MLP
    Readout  final norm -> hidden states of all rows; chosen rows -> top-K logits and their logsumexp

The three parts are modules of their own because the exporter traces each distinct one once and repeats it.
Moving the accepted rows of a tree together is a graph of its own, Compaction: most steps need none, and in the
decoder its nodes would cost every step (docs/decisions/0005-compaction.md).
Shapes: T query rows, R logit rows, A kept rows, C cache capacity, H hidden size, D head size.
Every module computes in the type of its parameters. What the host reads or writes is float32 in any case, and so are
the sums over a whole vocabulary, which half precision would spoil.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqrt.graphs.config import DecoderConfig, LayerKind
from seqrt.graphs.ops import attention, log_sum_exp, tensor_scatter
from seqrt.graphs.rope import cos_sin

NUM_CANDIDATES = 256  # K: sampling is defined over so many tokens, so [R, vocabulary] stays on the device


class UnitRMSNorm(nn.RMSNorm):
    """RMSNorm whose stored weight is the difference from one (Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape, normalised over the last dimension."""
        wide = nn.functional.rms_norm(x.float(), self.normalized_shape, self.weight.float() + 1, self.eps)
        return wide.to(x.dtype)  # half precision has too few digits for the sum


def norm(config: DecoderConfig, size: int) -> nn.Module:
    """The normalisation that `config.norm` names, over the last `size` values."""
    kinds = {"rms": nn.RMSNorm, "rms_plus_one": UnitRMSNorm, "layer": nn.LayerNorm}
    made: nn.Module = kinds[config.norm](size, eps=config.norm_eps)
    return made


class Linear(nn.Module):
    """x @ weight + bias, with the weight as `[in, out]`: the layout that blocks along axis 0 quantise."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_in, size_out) / size_in**0.5)
        self.bias = nn.Parameter(torch.zeros(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True)
class Rows:
    """What every layer of one kind needs to know of the rows being computed.

    Attributes:
        cos, sin: rotations `[1, T, D/2]`; None with learned positions.
        mask: `[1, 1, T, C]`, 0 for the cache rows that a new row sees, -inf for all others. Engines would turn a bool
            mask into this one in every layer.
        write: int64 `[1]`, cache row of the first new row.
    """

    cos: Tensor | None
    sin: Tensor | None
    mask: Tensor
    write: Tensor


class Frame(nn.Module):
    """Embeds the tokens and derives from the positions what the layers of each kind share."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kinds: tuple[LayerKind, ...] = tuple(sorted(set(config.layer_kinds)))
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.reads_pad:  # beside the table, not a row of it: the output layer, which may share it, has no PAD
            self.pad = nn.Embedding(1, config.hidden_size)
        if config.learned_positions:
            self.position = nn.Embedding(config.max_positions, config.hidden_size)
        with torch.device("cpu"):  # the tables are no weights: a module made on the meta device needs them too
            for kind, rope in config.ropes.items():
                cos, sin = cos_sin(rope, config.max_positions)
                self.register_buffer(f"cos_{kind}", cos, persistent=False)
                self.register_buffer(f"sin_{kind}", sin, persistent=False)

    def forward(
        self, token_ids: Tensor, ancestors: Tensor, depth: Tensor, past_len: Tensor, past_key: Tensor
    ) -> list[Tensor]:
        """Embeddings `[1, T, H]`, then mask (and cos, sin) of each kind in `self.kinds`.

        `past_key` `[1, heads, C, D]` is read for its capacity only.
        """
        position = past_len + depth
        x = self._embedded(token_ids)
        if self.config.learned_positions:
            x = x + self.position(position)[None]
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        outputs = [x]
        for kind in self.kinds:
            outputs.append(self._mask(kind, ancestors, depth, past_len, past_key.shape[2]))
            if kind in self.config.ropes:
                outputs += [getattr(self, f"{table}_{kind}")[position][None] for table in ("cos", "sin")]
        return outputs

    def _embedded(self, token_ids: Tensor) -> Tensor:
        if not self.config.reads_pad:
            return self.embed(token_ids)  # type: ignore[no-any-return]
        pad = self.config.vocab_size
        return torch.where((token_ids == pad)[..., None], self.pad.weight, self.embed(token_ids.clamp(max=pad - 1)))

    def _mask(self, kind: LayerKind, ancestors: Tensor, depth: Tensor, past_len: Tensor, capacity: int) -> Tensor:
        """Mask `[1, 1, T, C]`: all committed rows, and of the new rows the ancestors; less what slid out."""
        rows = ancestors.shape[0]
        column = torch.arange(capacity)[None] - past_len  # relative to the first new row
        is_new = (column >= 0) & (column < rows)
        slot = column.clamp(0, rows - 1)
        mask = (column < 0) | (is_new & torch.gather(ancestors, 1, slot.expand(rows, capacity)))
        if kind == "sliding":
            offset = torch.where(is_new, depth[slot], column)  # position of each cache row, relative to past_len
            mask = mask & (depth[:, None] - offset < (self.config.sliding_window or 0))
        return torch.where(mask, 0.0, -torch.inf).to(self.embed.weight.dtype)[None, None]


class Attention(nn.Module):
    """Grouped-query attention over a cache that is extended in place.

    Queries come scaled: the exporter multiplies `config.attention_scale` into what makes them, the weight of their norm
    where there is one and else their part of `qkv`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.num_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, width + 2 * config.num_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.o = Linear(width, config.hidden_size, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = norm(config, config.head_dim), norm(config, config.head_dim)

    def forward(self, x: Tensor, rows: Rows, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[1, T, H]` and the caches `[1, kv heads, C, D]` to the same."""
        config = self.config
        num_q, num_kv = config.num_heads, config.num_kv_heads
        heads = self.qkv(x).view(1, -1, num_q + 2 * num_kv, config.head_dim).transpose(1, 2)
        if config.qk_norm:
            query, key, value = torch.split(heads, [num_q, num_kv, num_kv], 1)
            query, key = rotate(self.q_norm(query), rows), rotate(self.k_norm(key), rows)
        else:  # one rotation for both: a node less in each layer
            both, value = torch.split(heads, [num_q + num_kv, num_kv], 1)
            query, key = torch.split(rotate(both, rows), [num_q, num_kv], 1)
        key = tensor_scatter(past_key, key, rows.write)
        value = tensor_scatter(past_value, value, rows.write)
        out = attention(query, key, value, rows.mask)
        return self.o(out.transpose(1, 2).reshape(1, -1, num_q * config.head_dim)), key, value


def rotate(heads: Tensor, rows: Rows) -> Tensor:
    """Rotary embedding of `[1, heads, T, D]`; nothing with learned positions."""
    if rows.cos is None or rows.sin is None:
        return heads
    return torch.onnx.ops.rotary_embedding(heads, rows.cos, rows.sin)


class Compaction(nn.Module):
    """Moves accepted rows of a cache, wherever they lie in a tree, to the end of the committed ones."""

    def forward(self, past: Tensor, keep: Tensor, write: Tensor) -> Tensor:
        """`past` `[1, heads, C, D]` with its rows `keep` int64 `[A]` copied to those from `write` int64 `[1]` on."""
        moved: Tensor = tensor_scatter(past, past.index_select(2, keep), write)
        return moved


class MLP(nn.Module):
    """Position-wise feed-forward; gate and up are one projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        size, wide = config.hidden_size, config.intermediate_size
        self.up = Linear(size, wide * (2 if config.gated_mlp else 1), bias=config.mlp_bias)
        self.down = Linear(wide, size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[1, T, H]` to the same."""
        wide = self.up(x)
        if self.config.gated_mlp:
            gate, up = wide.chunk(2, -1)
            wide = self._activate(gate) * up
        else:
            wide = self._activate(wide)
        result: Tensor = self.down(wide)
        return result

    def _activate(self, x: Tensor) -> Tensor:
        if self.config.activation == "silu":
            return nn.functional.silu(x)
        approximate = "tanh" if self.config.activation == "gelu_tanh" else "none"
        return nn.functional.gelu(x, approximate=approximate)


class Layer(nn.Module):
    """One decoder layer: attention and MLP, each normalised before and, in Gemma 3, after."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm, self.mlp_norm = norm(config, size), norm(config, size)
        self.attention, self.mlp = Attention(config), MLP(config)
        self.attention_post_norm = norm(config, size) if config.post_norms else nn.Identity()
        self.mlp_post_norm = norm(config, size) if config.post_norms else nn.Identity()

    def forward(self, x: Tensor, rows: Rows, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[1, T, H]` and the layer's caches to the same."""
        y, key, value = self.attention(self.attention_norm(x), rows, past_key, past_value)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))), key, value


class Readout(nn.Module):
    """Final norm and output layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = norm(config, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.num_candidates = min(NUM_CANDIDATES, config.vocab_size)

    def forward(self, x: Tensor, logit_rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top-K ids and logits `[R, K]` (descending), logsumexp `[R]`, hidden `[T, H]`; floats as float32."""
        hidden = self.norm(x)[0]
        logits = self.head(hidden.index_select(0, logit_rows)).float()
        top = torch.topk(logits, self.num_candidates)
        return top.indices, top.values, log_sum_exp(logits, top.values[:, :1])[:, 0], hidden.float()


class Decoder(nn.Module):
    """The whole model. With tied embeddings `embed` and `head` share their weight."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.frame = Frame(config)
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_kinds)
        self.readout = Readout(config)
        if config.tied_embeddings:
            self.readout.head.weight = self.frame.embed.weight

    def forward(
        self,
        token_ids: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        past_len: Tensor,
        logit_rows: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """One step; inputs and outputs as the graph contract in docs/architecture.md names them."""
        x, *shared = self.frame(token_ids, ancestors, depth, past_len, past[0][0])
        rows = rows_by_kind(self.frame, past_len, shared)
        present = []
        for layer, kind, (key, value) in zip(self.layers, self.config.layer_kinds, past, strict=True):
            x, key, value = layer(x, rows[kind], key, value)
            present.append((key, value))
        return *self.readout(x, logit_rows), present


def rows_by_kind(frame: Frame, write: Tensor, shared: list[Tensor]) -> dict[LayerKind, Rows]:
    """Sorts what `Frame` returned after the embeddings by the kind of layer it is for."""
    remaining, rows = iter(shared), {}
    for kind in frame.kinds:
        mask = next(remaining)
        cos, sin = (next(remaining), next(remaining)) if kind in frame.config.ropes else (None, None)
        rows[kind] = Rows(cos, sin, mask, write)
    return rows
