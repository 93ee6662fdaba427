"""SVTR, a visual encoder for text (arXiv 2205.00159, section 3), as CPPD uses it, and its second version.

Two convolutions make a token of every 4 x 4 pixels; three stages mix tokens, by grouped convolutions first and by
attention later; between stages a convolution may halve the rows of the grid, never its columns, along which one reads.
Blocks are post-norm: x = LN1(x + mixer(x)), x = LN2(x + mlp(x)).

SVTRv2 (arXiv 2411.15858) has two 3 x 3 convolutions in a mixer where SVTR has one of 5 x 5, and no positions, so that
the size of an image is free.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from seqrt.errors import CheckpointError
from seqrt.graphs.decoder import Linear

Mixer = Literal["conv", "global"]
Grid = tuple[int, int]

HEAD_DIM: Final = 32  # width of an attention head and of a group of a convolution, everywhere
PATCH: Final = 4  # pixels of a token's side
SPREAD: Final = 0.02  # of positions and projections before training
BLOCK_EPS: Final = 1e-6  # of the norms in blocks; those between stages have torch's default


@dataclass(frozen=True, slots=True, kw_only=True)
class SvtrConfig:
    """The shape of an encoder.

    Attributes:
        height, width: of the image in pixels; with positions, of every image.
        dims: channels of each stage.
        mixers: of each block of each stage.
        row_strides: what divides the rows of the grid between stages, one number fewer than stages.
        kernel, num_convs: of a convolutional mixer.
        has_positions: a position embedding is added to the tokens.

    Raises:
        CheckpointError: sizes that do not go together.
    """

    height: int
    width: int
    dims: tuple[int, ...]
    mixers: tuple[tuple[Mixer, ...], ...]
    row_strides: tuple[int, ...]
    kernel: int = 5
    num_convs: int = 1
    has_positions: bool = True

    def __post_init__(self) -> None:
        if not len(self.dims) == len(self.mixers) == len(self.row_strides) + 1:
            raise CheckpointError(f"{len(self.dims)} widths for {len(self.mixers)} stages of blocks")
        for dim in self.dims:
            if dim % HEAD_DIM:
                raise CheckpointError(f"{dim} channels are no multiple of {HEAD_DIM}, the width of a head")
        rows = PATCH
        for stride in self.row_strides:
            rows *= stride
        if self.height % rows or self.width % PATCH or self.height <= 0 or self.width <= 0:
            raise CheckpointError(
                f"images of {self.height} x {self.width} are not cut evenly; the height is a multiple of {rows},"
                f" the width one of {PATCH}"
            )

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens before the first stage."""
        return self.height // PATCH, self.width // PATCH

    @property
    def num_tokens(self) -> int:
        """Tokens behind the last stage."""
        rows, columns = self.grid
        for stride in self.row_strides:
            rows //= stride
        return rows * columns


class ConvNorm(nn.Module):
    """A 3 x 3 convolution of stride 2, batch normalisation, GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in, H, W]` to `[B, out, H / 2, W / 2]`."""
        return nn.functional.gelu(self.norm(self.conv(x)))

    def fuse(self) -> None:
        """Makes one convolution of the two, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention: `[B, heads, rows, D]`, the queries scaled already, to `[B, rows, heads * D]`.

    `mask` is added to the products: 0 where a row is seen, -inf elsewhere; None shows all.
    """
    scores = query @ key.transpose(2, 3)
    return joined(torch.softmax(scores if mask is None else scores + mask, -1) @ value)


def heads_of(x: Tensor) -> Tensor:
    """`[B, rows, heads * D]` to `[B, heads, rows, D]`."""
    return x.reshape(-1, x.shape[1], x.shape[2] // HEAD_DIM, HEAD_DIM).transpose(1, 2)


def joined(heads: Tensor) -> Tensor:
    """`[B, heads, rows, D]` to `[B, rows, heads * D]`."""
    return heads.transpose(1, 2).reshape(-1, heads.shape[2], heads.shape[1] * HEAD_DIM)


def to_grid(x: Tensor, grid: Grid) -> Tensor:
    """Tokens `[B, S, D]` to `[B, D, rows, columns]`."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], *grid)


def to_tokens(x: Tensor) -> Tensor:
    """And back."""
    return x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2)


class SelfAttention(nn.Module):
    """Every token reads every token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = Linear(dim, 3 * dim, bias=True)
        self.proj = Linear(dim, dim, bias=True)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """`[B, S, D]` to the same."""
        return self.proj(attend(*self.project(x)))  # type: ignore[no-any-return]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, S, D]` to query, scaled, key and value, `[B, heads, S, 32]`."""
        query, key, value = (heads_of(part) for part in self.qkv(x).chunk(3, 2))
        return query * HEAD_DIM**-0.5, key, value


class CrossAttention(nn.Module):
    """Rows read other rows, visual tokens for instance; `scale` of their products."""

    def __init__(self, dim: int, scale: float = HEAD_DIM**-0.5) -> None:
        super().__init__()
        self.q = Linear(dim, dim, bias=True)
        self.kv = Linear(dim, 2 * dim, bias=True)
        self.proj = Linear(dim, dim, bias=True)
        self.scale = scale

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """`[B, rows, D]` and `[B, S, D]` to `[B, rows, D]`."""
        return self.look(x, *self.project(read))

    def project(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, S, D]` to keys and values, `[B, heads, S, 32]`."""
        key, value = (heads_of(part) for part in self.kv(read).chunk(2, 2))
        return key, value

    def look(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`[B, rows, D]`, and what `project` gave, to `[B, rows, D]`."""
        return self.proj(attend(heads_of(self.q(x)) * self.scale, key, value))  # type: ignore[no-any-return]


class ConvMixer(nn.Module):
    """Every token reads those around it, by grouped convolutions."""

    def __init__(self, dim: int, kernel: int, num_convs: int) -> None:
        super().__init__()
        groups = dim // HEAD_DIM
        convs = [nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(num_convs)]
        self.convs = nn.Sequential(*convs)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """`[B, S, D]` to the same."""
        return to_tokens(self.convs(to_grid(x, grid)))


class MLP(nn.Module):
    """Two projections with GELU, four times as wide between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim, bias=True)
        self.fc2 = Linear(4 * dim, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S, D]` to the same."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Mixes tokens with a mixer, then each by itself.

    Args:
        dim: D.
        mixer: called with the tokens and what `forward` is given besides.
        drop_path: how often, in training, a branch is left out (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm1 = nn.LayerNorm(dim, BLOCK_EPS)
        self.mlp = MLP(dim)
        self.norm2 = nn.LayerNorm(dim, BLOCK_EPS)
        self.drop_path = drop_path

    def forward(self, x: Tensor, context: Grid | Tensor) -> Tensor:
        """`[B, S, D]` to the same; `context` is the grid of the tokens, or the tokens that are read."""
        x = self.norm1(x + self._dropped(self.mixer(x, context)))
        return self.norm2(x + self._dropped(self.mlp(x)))  # type: ignore[no-any-return]

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class Reduce(nn.Module):
    """Between stages: a 3 x 3 convolution to other channels and, with a stride of 2, half as many rows; a norm."""

    def __init__(self, dim_in: int, dim_out: int, row_stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=(row_stride, 1), padding=1)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens of `grid` and their grid."""
        made = self.conv(to_grid(x, grid))
        return self.norm(to_tokens(made)), (made.shape[2], made.shape[3])


class Svtr(nn.Module):
    """The encoder: images to visual tokens, row by row.

    Args:
        config: its shape.
        drop_path: rate of the last block in training; it grows from 0 from block to block.
    """

    def __init__(self, config: SvtrConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        first = config.dims[0]
        self.patch = nn.Sequential(ConvNorm(3, first // 2), ConvNorm(first // 2, first))
        rows, columns = config.grid
        self.positions = None
        if config.has_positions:
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows * columns, first), std=SPREAD))
        rates = iter(torch.linspace(0, drop_path, sum(map(len, config.mixers))).tolist())
        self.stages = nn.ModuleList()
        for dim, mixers in zip(config.dims, config.mixers, strict=True):
            made = [
                SelfAttention(dim) if mixer == "global" else ConvMixer(dim, config.kernel, config.num_convs)
                for mixer in mixers
            ]
            self.stages.append(nn.ModuleList(Block(dim, mixer, next(rates)) for mixer in made))
        widths = zip(config.dims, config.dims[1:], config.row_strides, strict=False)
        self.reduce = nn.ModuleList(Reduce(dim, following, stride) for dim, following, stride in widths)

    def forward(self, image: Tensor) -> Tensor:
        """Float `[B, 3, H, W]`, -1 to 1, to `[B, S, D]`."""
        x: Tensor = self.patch(image.to(next(self.parameters()).dtype))
        grid = (x.shape[2], x.shape[3])
        x = to_tokens(x)
        if self.positions is not None:
            x = x + self.positions
        for i, blocks in enumerate(self.stages):
            if i:
                x, grid = self.reduce[i - 1](x, grid)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, grid)
        return x

    def fuse(self) -> None:
        """Makes the batch normalisations part of the convolutions before them, for inference."""
        for conv in self.patch:
            conv.fuse()  # type: ignore[operator]


def initialise(module: nn.Module) -> None:
    """Starting values as SVTR is trained from: projections N(0, 0.02) within two deviations, Kaiming for others."""
    for part in module.modules():
        if isinstance(part, Linear):
            nn.init.trunc_normal_(part.weight, std=SPREAD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
