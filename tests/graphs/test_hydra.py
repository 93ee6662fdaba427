"""Hydra heads and their prefix layer, run eagerly, against the paper's equations and a Llama layer of transformers."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor, nn

from seqrt.errors import CheckpointError
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.hydra import HydraHead, PrefixLayer, prefix_config
from seqrt.graphs.rope import RopeConfig

HIDDEN, VOCAB, DRAFT, TOP = 12, 30, 20, 4


def randomized(head: HydraHead, seed: int = 0) -> HydraHead:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name == "tokens":
                parameter.copy_(torch.randperm(VOCAB, generator=generator)[: len(parameter)])
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return head


class Reference(nn.Module):
    """One head as its authors compute it: ResBlock with a projected residual, further blocks, output layer."""

    def __init__(self, head: HydraHead) -> None:
        super().__init__()
        state = head.state_dict()
        self.state, self.layers = state, len(head.later)
        self.inner, self.straight = (nn.Linear(len(state["first"]), HIDDEN) for _ in range(2))
        with torch.no_grad():
            for part, linear in enumerate((self.inner, self.straight)):
                columns = slice(part * HIDDEN, (part + 1) * HIDDEN)
                linear.weight.copy_(state["first"][:, columns].T)
                linear.bias.copy_(state["first_bias"][columns])

    def forward(self, state: Tensor, path: list[int]) -> Tensor:
        """Log-probabilities `[Vd]` after one path; ungrounded heads get an empty one."""
        embedded = [self.state["embed.weight"][token] * 2.0 for token in path]
        x = torch.cat([state, *embedded])
        y = self.straight(x) + nn.functional.silu(self.inner(x))
        for layer in range(self.layers):
            block = y @ self.state[f"later.{layer}"] + self.state[f"later_biases.{layer}"]
            y = y + block * torch.sigmoid(block)
        logits: Tensor = y @ self.state["output"] + self.state.get("output_bias", torch.zeros(DRAFT))
        return logits.log_softmax(0)


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
@pytest.mark.parametrize(("num_layers", "has_bias"), [(1, False), (3, True)])
def test_candidates_after_every_path(num_tokens: int, num_layers: int, has_bias: bool) -> None:
    head = randomized(
        HydraHead(HIDDEN, VOCAB, num_tokens, num_layers, DRAFT, TOP, has_bias=has_bias, embedding_scale=2.0)
    )
    generator = torch.Generator().manual_seed(5)
    state = torch.randn(1, HIDDEN, generator=generator)
    path = torch.randint(VOCAB, (5, max(num_tokens, 1)), generator=generator)
    with torch.no_grad():
        tokens, log_probabilities = head(state, path)
        expected = [Reference(head)(state[0], row[:num_tokens].tolist()) for row in path]
    assert tokens.shape == log_probabilities.shape == (5, TOP)
    for row, every in enumerate(expected):
        best = every.argsort(descending=True)[:TOP]
        torch.testing.assert_close(log_probabilities[row], every[best], atol=1e-5, rtol=0)
        assert tokens[row].tolist() == head.tokens[best].tolist(), "ids are those of the base's vocabulary"


BASE = DecoderConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    tied_embeddings=True,
    attention_scale=1.0,
    layer_kinds=("full", "full"),
    ropes={"full": RopeConfig(kind="default", theta=10000.0, dim=8)},
)


def llama(config: DecoderConfig) -> transformers.LlamaModel:
    """The authors' prefix layer: a Llama of one layer that is given embeddings."""
    torch.manual_seed(0)
    model = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=1,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def test_prefix_layer_in_pieces_is_a_llama_layer() -> None:
    """Rows come as they are accepted, 3, then 1, then 4; the state is that of the last row each time."""
    config = prefix_config(BASE)
    model = llama(config)
    layer = model.layers[0]
    prefix = PrefixLayer(config).eval()
    query = layer.self_attn.q_proj.weight * config.attention_scale
    state = {
        "layer.attention_norm.weight": layer.input_layernorm.weight,
        "layer.mlp_norm.weight": layer.post_attention_layernorm.weight,
        "layer.attention.qkv.weight": torch.cat(
            [query, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
        ).T,
        "layer.attention.o.weight": layer.self_attn.o_proj.weight.T,
        "layer.mlp.up.weight": torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).T,
        "layer.mlp.down.weight": layer.mlp.down_proj.weight.T,
        "norm.weight": model.norm.weight,
    }
    prefix.load_state_dict(state)
    hidden = torch.randn(8, config.hidden_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(inputs_embeds=hidden[None]).last_hidden_state[0]
        key = value = torch.zeros(1, config.num_kv_heads, 16, config.head_dim)
        past = 0
        for rows in (3, 1, 4):
            found, key, value = prefix(hidden[past : past + rows], torch.tensor([past]), key, value)
            past += rows
            torch.testing.assert_close(found[0], expected[past - 1], atol=1e-5, rtol=1e-4)


def test_a_base_without_rotary_positions_has_no_prefix_layer() -> None:
    with pytest.raises(CheckpointError, match="needs a base with rotary positions"):
        prefix_config(replace(BASE, learned_positions=True, ropes={}))
