"""Rotary position embedding tables (RoFormer, arXiv 2104.09864) and the scalings that real checkpoints use.

The canonical form is the half rotation of Hugging Face models: dimension i turns with dimension i + dim/2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import torch

from seqrt.errors import CheckpointError

RopeKind = Literal["default", "linear", "llama3", "yarn"]

ROPE_KINDS: Final[tuple[str, ...]] = get_args(RopeKind)
_REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How one kind of layer rotates its queries and keys.

    Attributes:
        kind: scaling rule.
        theta: base of the geometric row of wavelengths.
        dim: rotated dimensions of a head; even.
        parameters: numbers of the scaling rule, under their names in a Hugging Face `rope_parameters`
            (yarn's `truncate` is 0.0 or 1.0).
        factors: divisors of the dim/2 frequencies, which some GGUF files store instead of a rule.

    Raises:
        CheckpointError: unknown kind, odd dim, or a parameter of the kind is missing.
    """

    kind: RopeKind
    theta: float
    dim: int
    parameters: Mapping[str, float] = field(default_factory=dict)
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise CheckpointError(f"RoPE type {self.kind!r} is not supported; use one of {', '.join(ROPE_KINDS)}")
        missing = [name for name in _REQUIRED[self.kind] if name not in self.parameters]
        if missing:
            raise CheckpointError(f"RoPE type {self.kind!r} lacks {', '.join(missing)}; add it to rope_parameters")
        if self.dim <= 0 or self.dim % 2:
            raise CheckpointError(f"RoPE needs an even number of dimensions, got {self.dim}; check head_dim")
        if self.factors and len(self.factors) != self.dim // 2:
            raise CheckpointError(f"RoPE has {len(self.factors)} frequency factors, expected {self.dim // 2}")


def cos_sin(config: RopeConfig, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of the positions 0 .. `num_positions` - 1.

    Returns:
        Cosine and sine, float32 `[num_positions, dim/2]` each, yarn's attention factor multiplied into both.
    """
    frequencies, scale = inverse_frequencies(config)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * scale, angles.sin() * scale


def inverse_frequencies(config: RopeConfig) -> tuple[torch.Tensor, float]:
    """Radians per position, float32 `[dim/2]`, and the factor that belongs on cosine and sine.

    Float32 arithmetic in the order of `transformers.modeling_rope_utils`: at position 100,000 a last-bit
    difference in a frequency is already visible in the angle.
    """
    parameters = config.parameters
    wavelengths = config.theta ** (torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim)
    frequencies = 1.0 / wavelengths
    scale = 1.0
    if config.kind == "linear":
        frequencies = frequencies / parameters["factor"]
    elif config.kind == "llama3":
        frequencies = _llama3(frequencies, parameters)
    elif config.kind == "yarn":
        frequencies, scale = _yarn(config, wavelengths), _yarn_scale(parameters)
    if config.factors:
        frequencies = frequencies / torch.tensor(config.factors, dtype=torch.float32)
    return frequencies, scale


def _llama3(frequencies: torch.Tensor, parameters: Mapping[str, float]) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, the rest blended."""
    factor, low, high = (parameters[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = parameters["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    blend = (context / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    is_long, is_short = wavelengths > context / low, wavelengths < context / high
    stretched = torch.where(is_long, frequencies / factor, frequencies)
    return torch.where(is_long | is_short, stretched, blended)


def _yarn(config: RopeConfig, wavelengths: torch.Tensor) -> torch.Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): a linear ramp from kept to stretched frequencies."""
    parameters, dim = config.parameters, config.dim

    def boundary(rotations: float) -> float:
        """Dimension whose wavelength makes `rotations` turns in the original context."""
        turns = parameters["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = boundary(parameters.get("beta_fast") or 32), boundary(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp divides by the difference
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (parameters["factor"] * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _yarn_scale(parameters: Mapping[str, float]) -> float:
    """Temperature of YaRN's attention (section 3.4), as a factor on cosine and sine."""
    if "attention_factor" in parameters:
        return parameters["attention_factor"]

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(parameters["factor"]) + 1.0 if parameters["factor"] > 1 else 1.0

    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return growth(mscale) / growth(mscale_all_dim) if mscale and mscale_all_dim else growth(1.0)
