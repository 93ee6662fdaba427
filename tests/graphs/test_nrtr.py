"""The autoregressive recogniser: steps with a cache say what all characters at once say."""

import torch

from seqrt.graphs.cppd import IGNORED
from seqrt.graphs.nrtr import Nrtr, NrtrConfig, NrtrEncoder, NrtrStep
from seqrt.graphs.svtr import SvtrConfig

CONFIG = NrtrConfig(
    encoder=SvtrConfig(
        height=32, width=64, dims=(32, 64, 96), mixers=(("conv",), ("global",), ("global",)), row_strides=(2, 2)
    ),
    num_classes=11,
    num_layers=2,
    max_length=6,
)


def model() -> Nrtr:
    torch.manual_seed(0)
    made = Nrtr(CONFIG)
    for value in made.parameters():
        value.data += 0.05 * torch.randn_like(value)
    return made.eval()


def test_steps_are_the_same_as_all_at_once() -> None:
    made = model()
    image = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    token = torch.tensor([[CONFIG.begin, 3, 0, 7, 9, 2, 5], [CONFIG.begin, 1, 1, 4, 6, 8, 0]])
    expected = made.decoder.logits(made.encoder(image), token).softmax(2)
    cross = NrtrEncoder(made)(image)
    caches = [torch.randn(2, 3, CONFIG.num_steps, 32) for _ in range(2 * CONFIG.num_layers)]  # what is left of before
    step = NrtrStep(made)
    for place in range(CONFIG.num_steps):
        found, *caches = step(token[:, place], torch.full((2,), place), *caches, *cross)
        torch.testing.assert_close(found, expected[:, place], atol=1e-6, rtol=0)


def test_loss_is_of_characters_and_the_end() -> None:
    made = model()
    visual = torch.randn(1, 32, 96)
    labels = torch.tensor([[4, 2, 0, *[IGNORED] * 4]])
    logits = made.decoder.logits(visual, torch.tensor([[CONFIG.begin, 4, 2]])).log_softmax(2)
    expected = -(logits[0, 0, 4] + logits[0, 1, 2] + logits[0, 2, 0]) / 3
    torch.testing.assert_close(made.loss(visual, labels), expected)
