"""Trains an autoregressive decoder on the encoder of a trained CPPD, which stays as it is: what CPPD is measured by.

    python -m tools.ocr.train_nrtr --encoder tools/zoo/cppd-tiny --work DIR --fonts DIR... --words FILE... ...

Same encoder, same pictures, and NRTR's decoder: two layers, the character before in, the next one out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tools.ocr.data import Batches, add_sources, fixed, read, renderers, scaled
from tools.ocr.model import save
from tools.train.optimise import Optimisation
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from seqrt.exporter.checkpoints.recognizer import open_recognizer
from seqrt.graphs.cppd import Cppd
from seqrt.graphs.nrtr import Nrtr, NrtrConfig

_LAYERS = 2
_HELD_OUT = 500


def spell(model: Nrtr, images: Tensor) -> list[str]:
    """Words, a character a step, in torch."""
    visual = model.encoder(scaled(images))
    tokens = torch.full((len(images), 1), model.config.begin)
    for _ in range(model.config.num_steps):
        following = model.decoder.logits(visual, tokens)[:, -1].argmax(1)
        tokens = torch.cat([tokens, following[:, None]], 1)
    return read(tokens[:, 1:])


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser)
    parser.add_argument("--encoder", type=Path, required=True, help="a trained CPPD")
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and of what a stopped run needs")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = open_recognizer(arguments.encoder).model
    assert isinstance(source, Cppd), "--encoder is no CPPD"
    torch.manual_seed(arguments.seed)
    config = NrtrConfig(encoder=source.config.encoder, num_classes=source.config.num_classes, num_layers=_LAYERS)
    model = Nrtr(config)
    model.encoder = source.encoder
    model.encoder.eval().requires_grad_(requires_grad=False)
    made_with = f"batch {arguments.batch}, learning rate {arguments.learning_rate}, seed {arguments.seed}"
    file = arguments.work / "state.pt"
    run = Optimisation(model.decoder, arguments.steps, arguments.learning_rate, 0.05, file, made_with)
    renderer, held_out = renderers(arguments)
    images, words = fixed(held_out, _HELD_OUT, source.config)
    batches = iter(Batches(renderer, source.config, arguments.batch, arguments.seed + 1, run.step).loader())
    with tqdm(total=arguments.steps, initial=run.step, desc="train", unit="step", mininterval=5) as bar:
        while run.step < arguments.steps:
            image, label = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    visual = model.encoder(scaled(image))
                loss = model.loss(visual, label)
            run.descend(loss)
            bar.update()
            if run.step % arguments.every == 0 or run.step == arguments.steps:
                run.save()
                with torch.no_grad():
                    found = [word for part in torch.split(images, 100) for word in spell(model, part)]
                accuracy = sum(one == other for one, other in zip(found, words, strict=True)) / len(words)
                tqdm.write(f"step {run.step}: {accuracy:.1%} of held-out words read", file=sys.stderr)
                save(model, arguments.work)


if __name__ == "__main__":
    main()
