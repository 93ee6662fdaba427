"""What heads are trained with, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tools.train.heads import Heads
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters.

    Attributes:
        kind: One of KINDS.
        warm_up: Share of all steps.
        held_out: Share of all prompts.
        teacher: Learn from the base's distribution and not from the token that it said.
        prefix_epochs: Of the prefix layer (Hydra++), with which the heads are trained further; 0 for none.
        prefix_learning_rate: Of that.
    """

    kind: str = "medusa"
    num_heads: int = 4
    num_layers: int = 1
    draft_vocab: int = 8192
    epochs: int = 6
    batch: int = 256
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    held_out: float = 0.05
    teacher: bool = False
    prefix_epochs: int = 0
    prefix_learning_rate: float = 5e-4
    seed: int = 0

    @property
    def of_heads(self) -> str:
        """What heads without a prefix layer depend on, in words."""
        return str(replace(self, prefix_epochs=0))


@dataclass(frozen=True, slots=True)
class Trained:
    """Heads and what they were trained with; ``steps`` of each head."""

    heads: Heads
    token_map: Tensor
    recipe: Recipe
    steps: list[int]
    num_answers: int
    num_positions: int
