"""Trains a pointer model on random instances whose answers are exact (tools.pointer.data), made while it learns.

    python -m tools.pointer.train hull --work DIR --steps 8000

Every step's instances have the same number of points. DIR/model.safetensors holds the mean of the weights over the last
steps, as `seqrt export` reads it. A run that is stopped goes on from DIR/state.pt, which every measurement writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tools.pointer.data import make
from tools.pointer.model import RECIPES, save
from tools.train.averaged import Averaged
from torch import Tensor

from seqrt.graphs.pointing import PointerModel
from seqrt.runtime.rules import RULES, Bools, Ints

_CLIP: Final = 1.0
_WARM_UP: Final = 0.02
_HELD_OUT: Final = 512
_DECIDES: Final = ("task", "rules", "batch", "learning_rate", "seed")  # options that the result depends on


@dataclass(frozen=True, slots=True)
class Lesson:
    """Instances and their answers.

    Attributes:
        points: `[B, n, d]`.
        labels: int64 `[B, T]`, slots; -1 behind the end.
        allowed: bool `[B, T, n + 1]`, before each of them.
    """

    points: Tensor
    labels: Tensor
    allowed: Tensor


@dataclass(frozen=True, slots=True)
class Lessons(torch.utils.data.IterableDataset[Lesson]):
    """Lessons from number `first` on, without end; instance i of lesson s is drawn from seed, s and i.

    Attributes:
        task: what is to be learnt.
        rules: the task whose rules say what is allowed: the same, or "none".
        has_end: whether the model says where an answer ends.
        size: instances of a lesson.
        seed: of all of them.
        first: number of the first lesson.
    """

    task: str
    rules: str
    has_end: bool
    size: int
    seed: int
    first: int = 0

    def __iter__(self) -> Iterator[Lesson]:
        step = self.first
        while True:
            yield self.lesson(step)
            step += 1

    def lesson(self, step: int) -> Lesson:
        """One of them."""
        counts = RECIPES[self.task].points
        count = counts[int(np.random.default_rng((self.seed, step)).integers(len(counts)))]
        made = [make(self.task, count, (self.seed, step, i)) for i in range(self.size)]
        answers = [self._answer(item.points, item.labels - 1) for item in made if item.labels is not None]
        labels = np.full((self.size, max(map(len, answers))), -1)
        for row, answer in zip(labels, answers, strict=True):
            row[: len(answer)] = answer
        allowed = allowed_along(self.rules, labels, count, self.has_end)
        points = np.stack([item.points for item in made]).astype(np.float32)
        return Lesson(torch.from_numpy(points), torch.from_numpy(labels), torch.from_numpy(allowed))

    def _answer(self, points: np.ndarray[Any, Any], order: Ints) -> Ints:
        """As the model says it: a hull from its leftmost corner, since a set has no first; tours need not close."""
        if self.task == "hull":
            corners = order[:-1]
            corners = np.roll(corners, -int(points[corners, 0].argmin()))
            return np.append(corners, corners[0])
        if self.task == "tour":
            return order[:-1]
        return np.append(order, len(points)) if self.has_end else order

    def loader(self) -> Any:
        """The same, drawn by a process of its own."""
        return torch.utils.data.DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4)


def allowed_along(task: str, labels: Ints, size: int, has_end: bool) -> Bools:
    """Where answers `[B, T]` may point before each output, by the rules of decoding: bool `[B, T, size + 1]`."""
    rules = RULES[task](np.full(len(labels), size), 1, size, has_end)
    if task == "tour":
        rules.starts = labels[:, :1]
    found = np.empty((*labels.shape, size + 1), np.bool_)
    for place, token in enumerate(labels.T):
        rules.allow(found[:, place, None])
        rules.advance(None, np.where(token < 0, size, token)[:, None])
    return found


def losses(model: PointerModel, lesson: Lesson) -> Tensor:
    """Minus the log-probability of each output, `[B, T]`; 0 behind the end."""
    length = torch.full((len(lesson.points),), lesson.points.shape[1])
    labels = lesson.labels.clamp(min=0)
    found = model.follow(lesson.points, length, labels, lesson.allowed)
    chosen = torch.gather(found, 2, labels[..., None])[..., 0]
    return torch.where(lesson.labels < 0, 0.0, -chosen)


def train(arguments: argparse.Namespace) -> None:
    """Trains, and writes the model every `--every` steps and at the end."""
    torch.manual_seed(arguments.seed)
    recipe, rules = RECIPES[arguments.task], arguments.rules or arguments.task
    model = recipe.make()
    made_with = ", ".join(f"{name} {getattr(arguments, name)}" for name in _DECIDES)
    file = arguments.work / "state.pt"
    run = Averaged(model, {}, arguments.steps, arguments.learning_rate, _WARM_UP, _CLIP, file, made_with)
    held_out = Lessons(arguments.task, rules, model.has_end, _HELD_OUT, arguments.seed + 1).lesson(0)
    lessons = Lessons(arguments.task, rules, model.has_end, arguments.batch, arguments.seed, run.step)
    batches = iter(lessons.loader())

    def loss() -> dict[str, Tensor]:
        lesson = next(batches)
        return {"nats": losses(model, lesson).sum() / (lesson.labels >= 0).sum()}

    def report() -> str:
        save(run.mean, recipe.settings, arguments.work)
        with torch.no_grad():
            return f"{float(losses(run.mean, held_out).sum(1).mean()):.4f} nats an answer"

    run.finish(loss, arguments.every, report)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument(
        "--rules",
        choices=("none",),
        help="learn permutations without their rules, as the paper does; then solve and measure with --task none",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and of what a stopped run needs")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.rules and arguments.task != "permutation":
        parser.error("--rules none is for permutation, whose answers are as long as without rules")
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        train(arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
