"""CPPD, context perception parallel decoder (arXiv 2307.12270): all characters of a word in one pass.

    v          visual tokens, S of them, plus positions
    c <- Lc(c, c)                              characters: which are there, S rows
    n, v <- Lp([n, v], v)                      places: 26 nodes and the visual tokens, which all read the tokens alone
    e = L(n, c)                                each place reads the character stream, without scaling
    probabilities = softmax(e W + b)           [26, C]; class 0 ends the word

What a place reads decides its character; no character waits for another. In training, nodes of the character stream
count how often each character occurs, and the nodes of places say whether a word reaches so far. Visual tokens read no
node, so that without the counting nodes the result is the same: they are left out at inference.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqrt.graphs.decoder import Linear
from seqrt.graphs.svtr import HEAD_DIM, SPREAD, Block, CrossAttention, Svtr, SvtrConfig, initialise

EOS: Final = 0
IGNORED: Final = -100  # in labels: places behind the end
MAX_LENGTH: Final = 25
_SMOOTHING: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CppdConfig:
    """The shape of a recogniser.

    Attributes:
        encoder: of its encoder.
        num_classes: C, the end of a word and the characters.
        num_layers: of each stream.
        max_length: most characters of a word; there is a place more, for its end.
    """

    encoder: SvtrConfig
    num_classes: int
    num_layers: int
    max_length: int = MAX_LENGTH

    @property
    def num_places(self) -> int:
        """Characters and the end."""
        return self.max_length + 1


class Nodes(nn.Module):
    """Learned rows that read the image: embeddings, times the root of their width."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self) -> Tensor:
        """`[count, D]`."""
        weight: Tensor = self.embedding.weight
        scale: float = weight.shape[1] ** 0.5
        return weight * scale


class Places(Nodes):
    """The nodes of places: embeddings and positions."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__(count, dim)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, dim), std=SPREAD))

    def forward(self) -> Tensor:
        """`[count, D]`."""
        return super().forward() + self.positions


class FoldedPlaces(nn.Module):
    """The same as one constant."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.constant = nn.Parameter(places().detach().clone())

    def forward(self) -> Tensor:
        """`[count, D]`."""
        return self.constant


class CppdDecoder(nn.Module):
    """Visual tokens to the probabilities of every place's characters.

    Args:
        config: shape of the recogniser.
        drop_path: rate of the last layer in training.
    """

    def __init__(self, config: CppdConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, scale = config.encoder.dims[-1], HEAD_DIM**-0.5
        self.num_places = config.num_places
        self.positions = None
        if config.encoder.has_positions:
            spread = nn.init.trunc_normal_(torch.empty(1, config.encoder.num_tokens, dim), std=SPREAD)
            self.positions = nn.Parameter(spread)
        self.places: nn.Module = Places(config.num_places, dim)
        rates = torch.linspace(0, drop_path, config.num_layers + 1).tolist()
        self.char_layers, self.place_layers = (
            nn.ModuleList(Block(dim, CrossAttention(dim, scale), rate) for rate in rates[:-1]) for _ in range(2)
        )
        self.edge = Block(dim, CrossAttention(dim, 1.0), rates[-1])
        self.classes = Linear(dim, config.num_classes, bias=True)
        # What only training reads
        self.counted: nn.Module = Nodes(config.num_classes, dim)
        self.count: nn.Module = Linear(dim, config.max_length, bias=True)
        self.reach: nn.Module = Linear(dim, config.num_places, bias=True)

    def forward(self, visual: Tensor) -> Tensor:
        """`[B, S, D]` to float32 `[B, places, C]`."""
        visual = self._placed(visual)
        chars = visual
        for layer in self.char_layers:
            chars = layer(chars, chars)
        return torch.softmax(self._edges(self._places(visual), chars).float(), -1)

    def training_logits(self, visual: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the losses are of.

        Args:
            visual: `[B, S, D]`.
            counted: int64 `[B, N]`, the classes that are counted in each image; all of them if None.

        Returns:
            Logits of counts `[B, N, max_length]`, of whether the word reaches each place `[B, places]`, of
            characters `[B, places, C]`.
        """
        visual = self._placed(visual)
        nodes: Tensor = self.counted()
        nodes = nodes.expand(len(visual), -1, -1) if counted is None else nodes[counted]
        number = nodes.shape[1]
        chars = torch.cat([nodes, visual], 1)
        for layer in self.char_layers:
            chars = layer(chars, chars[:, number:])
        places = self._places(visual)
        reach = torch.diagonal(self.reach(places), dim1=1, dim2=2)
        return self.count(chars[:, :number]), reach, self._edges(places, chars[:, number:])

    def fold(self) -> None:
        """Drops what only training reads and makes the nodes of places a constant."""
        if isinstance(self.places, Places):
            self.places = FoldedPlaces(self.places)
        self.counted, self.count, self.reach = nn.Identity(), nn.Identity(), nn.Identity()

    def _placed(self, visual: Tensor) -> Tensor:
        return visual if self.positions is None else visual + self.positions

    def _places(self, visual: Tensor) -> Tensor:
        """What the place nodes read, `[B, places, D]`: of the last layer, nobody needs the visual rows."""
        nodes = self.places().expand(visual.shape[0], -1, -1)  # `len` would fix the batch
        for layer in self.place_layers[:-1]:
            both = layer(torch.cat([nodes, visual], 1), visual)
            nodes, visual = both[:, : self.num_places], both[:, self.num_places :]
        return self.place_layers[-1](nodes, visual)  # type: ignore[no-any-return]

    def _edges(self, places: Tensor, chars: Tensor) -> Tensor:
        return self.classes(self.edge(places, chars))  # type: ignore[no-any-return]


class Cppd(nn.Module):
    """The recogniser: an encoder and a decoder.

    Args:
        config: its shape.
        drop_path: rate of stochastic depth in training.
    """

    def __init__(self, config: CppdConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Svtr(config.encoder, drop_path)
        self.decoder = CppdDecoder(config, drop_path)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Float `[B, 3, H, W]`, -1 to 1, to float32 probabilities `[B, places, C]`."""
        return self.decoder(self.encoder(image))  # type: ignore[no-any-return]

    def loss(self, visual: Tensor, labels: Tensor, counted: Tensor | None = None) -> dict[str, Tensor]:
        """The three losses of training, whose sum is minimised.

        Args:
            visual: `[B, S, D]`, of the encoder.
            labels: int64 `[B, places]`: the word's classes, EOS, then IGNORED.
            counted: as for `CppdDecoder.training_logits`.

        Returns:
            "count", cross entropy of how often each counted class occurs (the end: once); "reach", binary cross
            entropy of which places the word and its end take; "edge", label-smoothed cross entropy of characters.
        """
        counts, reach, edges = self.decoder.training_logits(visual, counted)
        counts, reach, edges = counts.float(), reach.float(), edges.float()
        taken = labels != IGNORED
        present = functional.one_hot(labels.clamp(min=0), edges.shape[2]) * taken[..., None]
        often = present.sum(1) if counted is None else present.sum(1).gather(1, counted)
        return {
            "count": functional.cross_entropy(counts.flatten(0, 1), often.clamp(max=counts.shape[2] - 1).flatten()),
            "reach": functional.binary_cross_entropy_with_logits(reach, taken.float()),
            "edge": _smoothed(edges[taken], labels[taken]),
        }

    def fold(self) -> "Cppd":
        """Makes it what is exported: folded constants, nothing that only training reads. Returns itself."""
        self.encoder.fuse()
        self.decoder.fold()
        return self.eval()


def _smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with 0.1 of the weight spread over the other classes."""
    log = functional.log_softmax(logits, 1)
    others = _SMOOTHING / (logits.shape[1] - 1)
    chosen = log.gather(1, targets[:, None])[:, 0]
    return -(chosen * (1 - _SMOOTHING - others) + log.sum(1) * others).mean()
