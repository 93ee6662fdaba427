"""RoPE tables against transformers' own functions."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from seqrt.errors import CheckpointError
from seqrt.graphs.rope import RopeConfig, RopeKind, cos_sin, inverse_frequencies

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def reference_config(kind: str, theta: float, dim: int, parameters: dict[str, float]) -> Any:
    rope = {"rope_type": kind, "rope_theta": theta, **parameters}
    return LlamaConfig(head_dim=dim, max_position_embeddings=131072, rope_parameters=rope)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("default", {}),
        ("linear", {"factor": 8.0}),
        ("llama3", LLAMA3),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32768}),
        ("yarn", {"factor": 16.0, "original_max_position_embeddings": 4096, "attention_factor": 1.25}),
        (
            "yarn",
            {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.0},
        ),
        (
            "yarn",
            {"factor": 2.0, "original_max_position_embeddings": 1024, "beta_fast": 8.0, "beta_slow": 2.0},
        ),
        ("yarn", {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}),
        ("yarn", {"factor": 1.0, "original_max_position_embeddings": 4096, "beta_fast": 1.0}),
    ],
)
@pytest.mark.parametrize(("theta", "dim"), [(10000.0, 64), (500000.0, 128), (1000000.0, 8)])
def test_tables_equal_transformers(kind: RopeKind, parameters: dict[str, float], theta: float, dim: int) -> None:
    rotary = LlamaRotaryEmbedding(reference_config(kind, theta, dim, parameters))
    expected_cos, expected_sin = rotary(torch.zeros(1), torch.arange(5000)[None])

    cos, sin = cos_sin(RopeConfig(kind, theta, dim, parameters), 5000)

    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (5000, dim // 2)
    torch.testing.assert_close(cos, expected_cos[0, :, : dim // 2], rtol=0, atol=1e-5)
    torch.testing.assert_close(sin, expected_sin[0, :, : dim // 2], rtol=0, atol=1e-5)


def test_llama3_as_stored_factors_gives_the_same_frequencies() -> None:
    """GGUF files carry Llama 3's rule as one divisor for every frequency."""
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](reference_config("llama3", 500000.0, 64, LLAMA3), "cpu")
    plain, _ = inverse_frequencies(RopeConfig("default", 500000.0, 64))

    stored, _ = inverse_frequencies(RopeConfig("default", 500000.0, 64, factors=tuple((plain / frequencies).tolist())))

    torch.testing.assert_close(stored, frequencies, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "longrope"},
            "RoPE type 'longrope' is not supported; use one of default, linear, llama3, yarn",
        ),
        (
            {"kind": "yarn", "parameters": {"factor": 2.0}},
            "RoPE type 'yarn' lacks original_max_position_embeddings",
        ),
        ({"dim": 7}, "even number of dimensions, got 7"),
        ({"factors": (1.0,)}, "RoPE has 1 frequency factors, expected 4"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"kind": "default", "theta": 10000.0, "dim": 8}
    with pytest.raises(CheckpointError, match=message):
        RopeConfig(**(defaults | arguments))
