"""Adam with warm-up and a cosine; a run that is stopped goes on from its file and ends like a whole one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Optimisation:
    """The training of one module.

    Args:
        module: What is trained, in place.
        total: Steps in all.
        learning_rate: At its highest.
        warm_up: Share of the steps in which it rises.
        file: Read now if it exists; written by :meth:`save`.
        made_with: All that the result depends on, in words: a file made with something else is not gone on from.

    Attributes:
        step: Steps done.

    Raises:
        ValueError: The file was made with something else.
    """

    def __init__(
        self, module: nn.Module, total: int, learning_rate: float, warm_up: float, file: Path, made_with: str
    ) -> None:
        self.module, self.file, self.step, self.made_with = module, file, 0, f"{total} steps, {made_with}"
        self.optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _cosine(step, total, warm_up))
        self._parts: dict[str, Any] = {"block": module, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if file.exists():
            state = torch.load(file, weights_only=True)
            if state.get("made_with") != self.made_with:
                raise ValueError(
                    f"{file} was made with {state.get('made_with')}, wanted is {self.made_with};"
                    " take another --work, or delete the file"
                )
            self.step = int(state.pop("step"))
            for name, part in self._parts.items():
                part.load_state_dict(state[name])

    def descend(self, loss: Tensor) -> None:
        """One step against ``loss``."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()

    def update(self) -> None:
        """One step against the gradients that the parameters have."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1

    def save(self) -> None:
        """Write the file, whole or not at all."""
        state = {"step": self.step, "made_with": self.made_with} | {
            name: part.state_dict() for name, part in self._parts.items()
        }
        partial = self.file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.file)


def _cosine(step: int, total: int, warm_up: float) -> float:
    ramp = max(1, round(total * warm_up))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))
