"""Hydra draft heads (arXiv 2402.05109, section 3): head i guesses the token i + 2 places after a row, on a given path.

Medusa's heads guess without knowing of each other. Head i of Hydra reads, beside the state s of the last accepted row,
the embeddings of the tokens on the path so far, the root and i drafts:

    x = [s, E(root), E(draft 1), ..., E(draft i)]
    y = x R + r + SiLU(x W + b)                         further blocks: y + SiLU(y W + b)
    logits = y O + o

O is its own output layer, the base model's, or some rows of it (a reduced draft vocabulary). s is the base model's
hidden state or, in Hydra++ (section 4), what a decoder layer of its own makes of those of all accepted rows. A head
is a graph: one call guesses for all nodes of a depth.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from seqrt.errors import CheckpointError
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import Layer, Rows, norm
from seqrt.graphs.ops import log_sum_exp
from seqrt.graphs.rope import cos_sin


class HydraHead(nn.Module):
    """One head: a state and P paths to the candidates that follow each path.

    Args:
        hidden_size: H.
        base_vocab: rows of the embedding.
        num_tokens: of a path that are read, i + 1; 0 for heads that are not grounded in it.
        num_layers: blocks.
        vocab_size: columns of the output layer, Vd.
        top_k: candidates of each path, best first.
        has_bias: the output layer has a bias.
        embedding_scale: the base model's.
    """

    def __init__(
        self,
        hidden_size: int,
        base_vocab: int,
        num_tokens: int,
        num_layers: int,
        vocab_size: int,
        top_k: int,
        *,
        has_bias: bool,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.top_k, self.is_grounded, self.embedding_scale = top_k, num_tokens > 0, embedding_scale
        if self.is_grounded:
            self.embed = nn.Embedding(base_vocab, hidden_size)
        # W beside R: one product for both
        self.first = nn.Parameter(torch.zeros((1 + num_tokens) * hidden_size, 2 * hidden_size))
        self.first_bias = nn.Parameter(torch.zeros(2 * hidden_size))
        shape = (hidden_size, hidden_size)
        self.later = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(num_layers - 1))
        self.later_biases = nn.ParameterList(nn.Parameter(torch.zeros(hidden_size)) for _ in range(num_layers - 1))
        self.output = nn.Parameter(torch.zeros(hidden_size, vocab_size))
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if has_bias else None
        self.tokens = nn.Parameter(torch.zeros(vocab_size, dtype=torch.int64), requires_grad=False)

    def forward(self, state: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """`state` float32 `[1, H]` and `path` int64 `[P, i + 1]` to token ids and log-probabilities, `[P, k]`."""
        x = state.to(self.first.dtype).expand(path.shape[0], -1)
        if self.is_grounded:
            x = torch.cat([x, self.embed(path).flatten(1) * self.embedding_scale], 1)
        inner, straight = (x @ self.first + self.first_bias).chunk(2, 1)
        y = straight + nn.functional.silu(inner)
        for weight, bias in zip(self.later, self.later_biases, strict=True):
            y = y + nn.functional.silu(y @ weight + bias)
        logits = y @ self.output
        if self.output_bias is not None:
            logits = logits + self.output_bias
        logits = logits.float()
        top = torch.topk(logits, self.top_k)
        return self.tokens[top.indices], top.values - log_sum_exp(logits, top.values[:, :1])


def prefix_config(base: DecoderConfig) -> DecoderConfig:
    """The decoder that the prefix layer of Hydra++ is the only layer of: Llama's kind, of the base's size.

    Raises:
        CheckpointError: the base has no rotary positions.
    """
    if "full" not in base.ropes:
        raise CheckpointError("a Hydra prefix layer needs a base with rotary positions, this one has none")
    return replace(
        base,
        num_layers=1,
        norm="rms",
        activation="silu",
        gated_mlp=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        post_norms=False,
        attention_scale=base.head_dim**-0.5,
        layer_kinds=("full",),
        sliding_window=None,
        ropes={"full": base.ropes["full"]},
    )


class PrefixLayer(nn.Module):
    """Hydra++: a decoder layer with a cache of its own over the hidden states of accepted rows.

    Args:
        config: of a decoder with this one layer; as in the decoder, queries come scaled.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.layer, self.norm = Layer(config), norm(config, config.hidden_size)
        with torch.device("cpu"):
            tables = torch.stack(cos_sin(config.ropes["full"], config.max_positions))
            self.register_buffer("rotations", tables, persistent=False)

    def forward(
        self, hidden: Tensor, past_len: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden` float32 `[N, H]` of newly accepted rows, behind `past_len` int64 `[1]` earlier ones.

        Returns:
            The state float32 `[1, H]` of the last row, and the caches `[1, kv heads, C, D]` with the new rows in place.
        """
        row = torch.arange(hidden.shape[0])
        column = torch.arange(past_key.shape[2])[None] - past_len
        dtype = past_key.dtype
        mask = torch.where(column <= row[:, None], 0.0, -torch.inf).to(dtype)[None, None]
        position = past_len + row
        cos, sin = self.get_buffer("rotations")[:, position]
        rows = Rows(cos[None], sin[None], mask, past_len)
        y, key, value = self.layer(hidden[None].to(dtype), rows, past_key, past_value)
        return self.norm(y[0, -1:]).float(), key, value
