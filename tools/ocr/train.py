"""Trains CPPD to read words, on pictures that are rendered while it learns.

    python -m tools.ocr.train --work DIR --fonts DIR... --words FILE... --backgrounds DIR... --steps N

Fonts and words are split into those to train on and those held out (tools.ocr.fonts); accuracy is told of the latter.
DIR/model.safetensors holds the mean of the weights over the last steps, as `seqrt export` reads it. A run that is
stopped goes on from DIR/state.pt.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tools.ocr.data import Batches, add_sources, fixed, read, renderers, scaled
from tools.ocr.model import SHAPES, save
from tools.ocr.render import Renderer
from tools.train.averaged import Averaged
from torch import Tensor
from torch.nn import functional

from seqrt.graphs.cppd import Cppd, CppdConfig

_CLIP = 5.0
_WARM_UP = 0.015
_HELD_OUT = 1000
_DECIDES = ("shape", "batch", "learning_rate", "seed", "lengthen", "start")  # options that the result depends on


def train(renderer: Renderer, held_out: Renderer, arguments: argparse.Namespace) -> None:
    """Trains, and writes the model every `--every` steps and at the end."""
    torch.manual_seed(arguments.seed)
    config, device = SHAPES[arguments.shape], torch.device(arguments.device)
    model, hints = Cppd(config), Hints(config)
    if arguments.start is not None:
        begin(model, load_file(arguments.start))
    for module in (model, hints):
        module.to(device)
    made_with = ", ".join(f"{name} {getattr(arguments, name)}" for name in _DECIDES)
    file = arguments.work / "state.pt"
    run = Averaged(model, {"hints": hints}, arguments.steps, arguments.learning_rate, _WARM_UP, _CLIP, file, made_with)
    images, words = fixed(held_out, _HELD_OUT, config)
    batches = iter(Batches(renderer, config, arguments.batch, arguments.seed, run.step, arguments.lengthen).loader())

    def losses() -> dict[str, Tensor]:
        image, label = (part.to(device) for part in next(batches))
        model.train()
        with torch.autocast(device.type, torch.bfloat16):
            visual = model.encoder(scaled(image))
            return model.loss(visual, label) | hints(visual, label)  # type: ignore[no-any-return]

    def report() -> str:
        save(run.mean, arguments.work)
        return f"{right(run.mean, images.to(device), words):.1%} of held-out words read"

    run.finish(losses, arguments.every, report)


def begin(model: Cppd, weights: Mapping[str, Tensor]) -> None:
    """Gives the model those weights of another one that fit it: all, or the encoder's where only that is the same.

    Positions of narrower or wider images of the same height are stretched to its own.
    """
    own, weights = model.state_dict(), dict(weights)
    rows, columns = model.config.encoder.grid
    for name, count in (("encoder.positions", rows), ("decoder.positions", model.config.encoder.num_tokens // columns)):
        if name in weights:
            weights[name] = stretched(weights[name], count, columns)
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not any(name.startswith("encoder.") for name in fitting):
        raise ValueError("--start is of another shape; give a recogniser of this one")
    model.load_state_dict(fitting, strict=False)


def stretched(table: Tensor, rows: int, columns: int) -> Tensor:
    """A table of positions `[1, rows x other columns, D]` for so many columns."""
    lines = table.reshape(rows, -1, table.shape[2]).transpose(1, 2)
    return functional.interpolate(lines, size=columns, mode="linear").transpose(1, 2).reshape(1, rows * columns, -1)


class Hints(torch.nn.Module):
    """Losses on the visual tokens themselves, in training only.

    The decoder's own losses reach the encoder through two attentions that look everywhere at first. They then teach it
    nothing: its tokens become the same for all images. What is said of the tokens directly keeps them apart: which
    characters there are ("bag"), and in which order from left to right ("align", CTC on the columns of the grid).
    """

    def __init__(self, config: CppdConfig) -> None:
        super().__init__()
        self.columns = config.encoder.grid[1]
        self.classes = torch.nn.Linear(config.encoder.dims[-1], config.num_classes)

    def forward(self, visual: Tensor, label: Tensor) -> dict[str, Tensor]:
        """`[B, S, D]` and labels to the losses."""
        logits = self.classes(visual).float()
        is_character = label > 0
        counts = (functional.one_hot(label.clamp(min=0), logits.shape[2]) * is_character[..., None]).sum(1).float()
        shares = counts[:, 1:] / counts.sum(1, keepdim=True)
        bag = functional.cross_entropy(logits[:, :, 1:].mean(1), shares)
        columns = logits.reshape(len(logits), -1, self.columns, logits.shape[2]).mean(1).log_softmax(2).transpose(0, 1)
        lengths = is_character.sum(1)
        wide = torch.full_like(lengths, self.columns)
        align = functional.ctc_loss(columns, label.clamp(min=0), wide, lengths, zero_infinity=True)  # EOS is the blank
        return {"bag": bag, "align": align}


def right(model: Cppd, images: Tensor, words: Sequence[str]) -> float:
    """Share of words that are read without a mistake."""
    model.eval()
    with torch.no_grad():
        found = [word for part in torch.split(images, 100) for word in read(model(scaled(part)).argmax(2))]
    return sum(one == other for one, other in zip(found, words, strict=True)) / len(words)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and of what a stopped run needs")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny", help="base is for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--start", type=Path, help="model.safetensors whose weights this one begins with, as far as they fit"
    )
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lengthen", type=int, default=80, help="steps after which words may be a character longer")
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        train(*renderers(arguments), arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
