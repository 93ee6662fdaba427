"""Teach a decoder to predict lexical units: LoRA, or all of its weights, on text in which units are marked.

    python -m tools.lud.train --base MODEL.gguf --units units.jsonl --work DIR --out ADAPTER

Two losses are added: that of ordinary decoding, which keeps the model what it is, and that of units, whose tokens are
predicted from PADs (tools.lud.packing has how). From every marked unit, windows of at most `--lookahead` tokens
are drawn anew in each epoch, because at inference PADs follow any token and not the first of a unit only.

ADAPTER is a PEFT adapter (adapter_config.json, adapter_model.safetensors) or, after `--rank 0`, a checkpoint of
transformers, and beside it lud.json and lud.safetensors with the embedding of PAD. `seqrt export --lud` takes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tools.lud.model import UnitModel, load
from tools.lud.packing import PACKINGS, Packed
from tools.lud.units import Marked, Unit, read_marked
from tools.train.optimise import Optimisation
from tqdm import tqdm  # type: ignore[import-untyped]

from seqrt.exporter.checkpoints.lud import DEFAULT_BETA


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters.

    Attributes:
        lookahead: Most tokens of a window k: PADs predict k - 1 of them.
        pads: PADs for each token of a response, in the mean; windows are left out at random to keep to it.
        packing: One of PACKINGS.
        unit_weight: Of the loss of units; that of ordinary decoding counts 1.
        distil: Ordinary decoding is learnt from the base's distribution and not from the text.
        rank: Of the LoRA; 0 trains all weights.
        batch: Texts of an optimiser step.
        held_out: Share of the texts that are measured on.
    """

    lookahead: int = 4
    pads: float = 1.0
    packing: str = "branch"
    unit_weight: float = 1.0
    distil: bool = True
    rank: int = 32
    batch: int = 4
    epochs: int = 1
    learning_rate: float = 5e-4
    warm_up: float = 0.05
    held_out: float = 0.05
    seed: int = 0


def windows(text: Marked, lookahead: int, most_pads: int, rng: random.Random) -> list[Unit]:
    """Parts of the text's units that begin anywhere in them, each of at most `lookahead` tokens, with so many PADs."""
    found = [(start, min(start + lookahead - 1, last)) for first, last in text.units for start in range(first, last)]
    rng.shuffle(found)
    chosen, left = [], most_pads
    for first, last in found:
        if last - first <= left:
            chosen.append((first, last))
            left -= last - first
    return sorted(chosen)


def batches(texts: Sequence[Marked], recipe: Recipe, pad: int, first: int = 0) -> Iterator[list[Packed]]:
    """What each step learns from, in an order and with windows that the seed decides; from step `first` on."""
    per_epoch = math.ceil(len(texts) / recipe.batch)
    for step in range(first, per_epoch * recipe.epochs):
        epoch, index = divmod(step, per_epoch)
        order = random.Random(f"{recipe.seed} {epoch}").sample(range(len(texts)), len(texts))
        rng = random.Random(f"{recipe.seed} {step}")
        packed = []
        for text in (texts[i] for i in order[index * recipe.batch : (index + 1) * recipe.batch]):
            most = max(recipe.lookahead, round(recipe.pads * (len(text.ids) - text.resp_start)))
            packed.append(PACKINGS[recipe.packing](text, windows(text, recipe.lookahead, most, rng), pad))
        yield packed


def is_held_out(text: Marked, share: float) -> bool:
    """Whether a text is measured on and not trained on."""
    return zlib.crc32(text.id.encode()) % 1000 < share * 1000


def train(model: UnitModel, texts: Sequence[Marked], recipe: Recipe, checkpoint: Path, start: str = "") -> int:
    """Trains in place; goes on from `checkpoint` where it exists. Returns the number of steps.

    Args:
        model: What learns.
        texts: What from.
        recipe: Hyper-parameters.
        checkpoint: Written every hundred steps and at the end or on Ctrl-C; a resumed run ends like a whole one.
        start: What the weights came from, in words.

    Raises:
        ValueError: The checkpoint was made with something else.
    """
    total = math.ceil(len(texts) / recipe.batch) * recipe.epochs
    made_with = f"{recipe}, start {start!r}, base {_digest(model.final_norm())}, texts {_digest(texts)}"
    run = Optimisation(model.trained(), total, recipe.learning_rate, recipe.warm_up, checkpoint, made_with)
    weights = torch.tensor([1.0, recipe.unit_weight])
    model.train()
    with tqdm(total=total, initial=run.step, desc="train", unit="step", mininterval=5) as bar:
        try:
            for batch in batches(texts, recipe, model.pad, run.step):
                shown = torch.zeros(2)
                for packed in batch:  # one after another: what backward keeps of a pass is large
                    losses = torch.stack(model.losses(packed, distil=recipe.distil)) / len(batch)
                    (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
                    shown += losses.detach()
                run.update()
                bar.update()
                bar.set_postfix(text=f"{shown[0]:.3f}", unit=f"{shown[1]:.3f}", refresh=False)
                if run.step % 100 == 0:
                    run.save()
        finally:
            run.save()
    return total


def _digest(value: object) -> str:
    data = value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
    return hashlib.sha256(data).hexdigest()[:12]


@torch.no_grad()
def measure(model: UnitModel, texts: Sequence[Marked], recipe: Recipe) -> dict[str, float]:
    """Means over texts with units: cross-entropy of ordinary decoding, and of all windows of the units."""
    model.eval()
    found = []
    for text in (text for text in texts if text.units):
        units = windows(text, recipe.lookahead, len(text.ids) * recipe.lookahead, random.Random(0))
        found.append(torch.stack(model.losses(PACKINGS["branch"](text, units, model.pad), distil=False)))
    if not found:
        return {}
    plain, unit = torch.stack(found).mean(0).tolist()
    return {"texts": len(found), "text_loss": plain, "unit_loss": unit}


def ship(out: Path, model: UnitModel, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Writes the adapter, or the checkpoint, and the embedding of PAD."""
    out.mkdir(parents=True, exist_ok=True)
    if model.rank:
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(model.decoder, save_embedding_layers=False)
        named = {f"base_model.model.{name}": tensor.half().contiguous() for name, tensor in tensors.items()}
        save_file(named, out / "adapter_model.safetensors")
        adapter = model.decoder.peft_config["default"]
        adapter.base_model_name_or_path = settings["base_model"]
        adapter.save_pretrained(out)
    else:
        model.decoder.save_pretrained(out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
    learnt = {"pad_embedding": model.pad_row.detach().float(), "base_norm": model.final_norm()}
    save_file(learnt, out / "lud.safetensors")
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # the library makes them private
    (out / "lud.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    standard = Recipe()
    parser.add_argument("--base", type=Path, required=True, help="GGUF file or Hugging Face directory")
    parser.add_argument("--base-name", help="what the card calls the base; the name of its file or folder if not given")
    parser.add_argument("--units", type=Path, required=True, nargs="+", help="what tools.lud.mark wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--start", type=Path, help="lud.pt of an earlier run with this rank, to begin with its weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--lookahead", type=int, default=standard.lookahead)
    parser.add_argument("--pads", type=float, default=standard.pads, help="PADs for each token of a response")
    parser.add_argument("--packing", choices=sorted(PACKINGS), default=standard.packing)
    parser.add_argument("--unit-weight", type=float, default=standard.unit_weight)
    parser.add_argument("--from-text", action="store_true", help="learn ordinary decoding from the text, not the base")
    parser.add_argument("--rank", type=int, default=standard.rank, help="of the LoRA; 0 trains all weights")
    parser.add_argument("--batch", type=int, default=standard.batch, help="texts of a step")
    parser.add_argument("--epochs", type=int, default=standard.epochs)
    parser.add_argument("--learning-rate", type=float, default=standard.learning_rate)
    parser.add_argument("--seed", type=int, default=standard.seed)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    names = ("lookahead", "pads", "packing", "unit_weight", "rank", "batch", "epochs", "learning_rate", "seed")
    recipe = Recipe(
        **{name: getattr(options, name) for name in names}, distil=not options.from_text and options.rank > 0
    )
    torch.set_num_threads(options.threads)
    torch.manual_seed(recipe.seed)
    texts = [text for path in options.units for text in read_marked(path)]
    learnt = [text for text in texts if text.units and not is_held_out(text, recipe.held_out)]
    held_out = [text for text in texts if is_held_out(text, recipe.held_out)]
    if not learnt:
        raise ValueError(f"no text of {', '.join(map(str, options.units))} has units; mark with a smaller --alpha")
    model, tokenizer = load(options.base, recipe.rank, getattr(torch, options.dtype))
    model.final_norm()  # a base that cannot be exported is refused before anything is computed
    options.work.mkdir(parents=True, exist_ok=True)
    if options.start:
        try:
            model.trained().load_state_dict(torch.load(options.start, weights_only=True)["block"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"--start {options.start} has not the weights of a LoRA of rank {recipe.rank}") from error
    before = measure(model, held_out, recipe)
    steps = train(model, learnt, recipe, options.work / "lud.pt", str(options.start or ""))
    after = measure(model, held_out, recipe)
    ship(
        options.out,
        model,
        tokenizer,
        {
            "base_model": options.base_name or options.base.name,
            "lookahead": recipe.lookahead,
            "beta": DEFAULT_BETA,
            "alpha": learnt[0].alpha,
            "training": {**asdict(recipe), "steps": steps, "texts": len(learnt), "start": str(options.start or "")},
            "held_out": {"before": before, "after": after},
        },
    )
    print(json.dumps({"before": before, "after": after}, indent=2))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"train: {error}") from error
