"""The loop of a training whose result is the mean of the weights over the last steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import torch
from tools.train.optimise import Optimisation
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm  # type: ignore[import-untyped]

_DECAY: Final = 0.995  # of the mean
_SHOWN: Final = 20  # steps between the losses that are shown
M = TypeVar("M", bound=nn.Module)


class Averaged(Optimisation, Generic[M]):
    """The training of a model.

    Args:
        model: What is trained, in place.
        beside: What is trained along with it.
        total: Steps in all.
        learning_rate: At its highest.
        warm_up: Share of the steps in which it rises.
        clip: Largest norm of the model's gradients.
        file: Read now if it exists; written as the training goes on.
        made_with: As for ``Optimisation``.

    Attributes:
        mean: The mean of the model.
    """

    def __init__(
        self,
        model: M,
        beside: Mapping[str, nn.Module],
        total: int,
        learning_rate: float,
        warm_up: float,
        clip: float,
        file: Path,
        made_with: str,
    ) -> None:
        self.model, self.total, self.clip = model, total, clip
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))  # type: ignore[no-untyped-call]
        for parameter in self._average.parameters():
            parameter.requires_grad_(False)
        self.mean: M = self._average.module  # type: ignore[assignment]
        all_of_it = nn.ModuleDict({"model": model, "average": self._average, **beside})
        super().__init__(all_of_it, total, learning_rate, warm_up, file, made_with)

    def descend(self, loss: Tensor) -> None:
        """One step against ``loss``."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.update()
        self._average.update_parameters(self.model)

    def finish(self, losses: Callable[[], Mapping[str, Tensor]], every: int, report: Callable[[], str]) -> None:
        """All steps that are left, each against the sum of `losses()`; saved and reported on `every` so many.

        Of a run that is at its end only the report is left, which writes the model.
        """
        if self.step == self.total:
            tqdm.write(f"step {self.step}: {report()}", file=sys.stderr)
        with tqdm(total=self.total, initial=self.step, desc="train", unit="step", mininterval=5) as bar:
            while self.step < self.total:
                found = losses()
                self.descend(torch.stack([*found.values()]).sum())
                bar.update()
                if self.step % _SHOWN == 0:
                    bar.set_postfix({name: f"{float(loss.detach()):.3f}" for name, loss in found.items()})
                if self.step % every == 0 or self.step == self.total:
                    self.save()
                    tqdm.write(f"step {self.step}: {report()}", file=sys.stderr)
