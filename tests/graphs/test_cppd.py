"""CPPD and its encoder in torch: what may be left out without a difference, and what the losses count."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import CheckpointError
from seqrt.graphs.cppd import EOS, IGNORED, Cppd, CppdConfig
from seqrt.graphs.svtr import SvtrConfig

ENCODER = SvtrConfig(
    height=32, width=64, dims=(32, 64, 96), mixers=(("conv",), ("conv", "global"), ("global",)), row_strides=(2, 2)
)
CONFIG = CppdConfig(encoder=ENCODER, num_classes=11, num_layers=2, max_length=6)


@pytest.fixture
def model() -> Cppd:
    torch.manual_seed(0)
    made = Cppd(CONFIG)
    for value in made.parameters():
        value.data += 0.05 * torch.randn_like(value)
    return made.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(3, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def labels_of(*words: list[int]) -> torch.Tensor:
    rows = [[*word, EOS, *[IGNORED] * (CONFIG.max_length - len(word))] for word in words]
    return torch.tensor(rows)


def test_counting_nodes_change_nothing(model: Cppd, image: torch.Tensor) -> None:
    visual = model.encoder(image)
    for counted in (None, torch.tensor([[1, 2], [3, 4], [5, 6]])):
        *_, edges = model.decoder.training_logits(visual, counted)
        torch.testing.assert_close(edges.softmax(2), model(image), atol=1e-6, rtol=0)


def test_folding_changes_nothing(model: Cppd, image: torch.Tensor) -> None:
    expected, before = model(image), sum(value.numel() for value in model.parameters())
    torch.testing.assert_close(model.fold()(image), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.fold()(image), expected, atol=2e-6, rtol=0)  # again does no harm
    assert not [name for name in model.state_dict() if "counted" in name or "reach" in name or "norm.running" in name]
    assert sum(value.numel() for value in model.parameters()) < before


def test_the_last_layer_of_places_needs_no_visual_rows(model: Cppd, image: torch.Tensor) -> None:
    decoder, visual = model.decoder, model.encoder(image) + model.decoder.positions
    both = torch.cat([decoder.places().expand(3, -1, -1), visual], 1)
    for layer in decoder.place_layers:
        both = layer(both, both[:, CONFIG.num_places :])
    torch.testing.assert_close(decoder._places(visual), both[:, : CONFIG.num_places], atol=1e-6, rtol=0)


def test_losses_count_what_is_there(model: Cppd, image: torch.Tensor) -> None:
    """Logits that say the truth have next to no loss; what smoothing leaves is its own entropy."""
    words = [[3, 3, 5], [1], [2, 4, 6, 8, 10, 9]]
    labels = labels_of(*words)
    counts = torch.zeros(3, 11, CONFIG.max_length)
    for row, word in enumerate(words):
        for character in range(11):
            counts[row, character, word.count(character) if character else 1] = 50.0
    reach = torch.tensor([[100.0 if place <= len(word) else -100.0 for place in range(7)] for word in words])
    edges = torch.nn.functional.one_hot(labels.clamp(min=0), 11).float() * 50
    decoder = model.decoder
    decoder.training_logits = lambda *_: (counts, reach, edges)  # type: ignore[method-assign]
    losses = model.loss(model.encoder(image), labels)
    assert float(losses["count"]) < 1e-6
    assert float(losses["reach"]) < 1e-6
    assert float(losses["edge"]) == pytest.approx(0.1 * 50, rel=1e-3)  # a tenth of the weight is on the others
    some = torch.tensor([[0, 3], [1, 2], [10, 7]])
    decoder.training_logits = lambda *_: (  # type: ignore[method-assign]
        counts.gather(1, some[..., None].expand(-1, -1, CONFIG.max_length)),
        reach,
        edges,
    )
    assert float(model.loss(model.encoder(image), labels, some)["count"]) < 1e-6


def test_training_lowers_the_losses(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Cppd(CONFIG, drop_path=0.1).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    labels = labels_of([3, 3, 5], [1], [2, 4])
    totals = []
    for _ in range(30):
        total = torch.stack(list(model.loss(model.encoder(image), labels).values())).sum()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]


@given(height=st.integers(1, 80), width=st.integers(1, 80))
def test_sizes_that_are_not_cut_evenly_are_refused(height: int, width: int) -> None:
    if height % 16 == 0 and width % 4 == 0:
        made = replace(ENCODER, height=height, width=width)
        assert made.num_tokens == height // 16 * width // 4
    else:
        with pytest.raises(CheckpointError, match=f"{height} x {width} are not cut evenly"):
            replace(ENCODER, height=height, width=width)


def test_shapes_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no multiple of 32"):
        replace(ENCODER, dims=(32, 50, 96))
    with pytest.raises(CheckpointError, match="3 widths for 2 stages"):
        replace(ENCODER, mixers=(("conv",), ("global",)))
