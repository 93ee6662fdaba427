"""Puts the root on the path, since tools/ is not part of the installed package, and makes a tiny base model."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.train.base import Llama, LlamaShape

HIDDEN, VOCAB, LAYERS = 24, 40, 2


@pytest.fixture(scope="session")
def base() -> Llama:
    """A random decoder: 4 heads of width 6 over 2 key-value heads."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.25

    state = {"token_embd.weight": matrix(VOCAB, HIDDEN) * 4, "output_norm.weight": torch.ones(HIDDEN)}
    for i in range(LAYERS):
        sizes = {
            "attn_q": (24, HIDDEN),
            "attn_k": (12, HIDDEN),
            "attn_v": (12, HIDDEN),
            "attn_output": (HIDDEN, 24),
            "ffn_gate": (32, HIDDEN),
            "ffn_up": (32, HIDDEN),
            "ffn_down": (HIDDEN, 32),
        }
        state |= {f"blk.{i}.{name}.weight": matrix(*shape) for name, shape in sizes.items()}
        state |= {f"blk.{i}.{name}.weight": torch.ones(HIDDEN) for name in ("attn_norm", "ffn_norm")}
    shape = LlamaShape(LAYERS, num_heads=4, num_kv_heads=2, head_dim=6, rope_theta=10000.0, norm_eps=1e-5)
    return Llama(shape, state)
