"""Token trees: what a drafter proposes and one model call verifies (Medusa, arXiv 2401.10774, section 2.1.2).

Node 0 is the root: the token that is already decided but not yet in the cache. Every other node is a draft
of what follows its parent. Parents stand before their children, so the first n nodes of a tree are a tree.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from seqrt.errors import RequestError
from seqrt.runtime.named_trees import NAMED_TREES

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Path = tuple[int, ...]


def _topology(parents: Sequence[int]) -> tuple[IntArray, BoolArray]:
    """Depth [N] and ancestors-or-self [N, N] of nodes whose parents stand before them."""
    # Rows are built as integers used as bit sets: 64 nodes take 20 us, numpy row by row takes 100 us.
    depth, rows = [0], [1]
    if not len(parents) or parents[0] != -1:
        raise RequestError("a token tree needs a root: parents[0] must be -1")
    for node, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < node:
            raise RequestError(
                f"node {node} of a token tree has parent {parent}: parents must stand before their children"
            )
        depth.append(depth[parent] + 1)
        rows.append(rows[parent] | 1 << node)
    width = (len(rows) + 7) // 8
    packed = np.frombuffer(b"".join([row.to_bytes(width, "little") for row in rows]), np.uint8)
    bits = np.unpackbits(packed.reshape(-1, width), axis=1, count=len(rows), bitorder="little")
    return np.array(depth, np.int64), bits.view(np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Drafted tokens and how they hang together.

    Attributes:
        tokens: int64 [N], node 0 is the root. Siblings stand in the order in which they were drawn.
        parents: int64 [N], parents[0] = -1 and parents[i] < i.
        depth: int64 [N], 0 for the root.
        ancestors: bool [N, N], row i marks i itself and everything above it.

    Raises:
        RequestError: the arrays are not one-dimensional, differ in length, or a parent follows its child.
    """

    tokens: IntArray
    parents: IntArray
    depth: IntArray = field(init=False, repr=False)
    ancestors: BoolArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.shape != self.parents.shape:
            raise RequestError(
                f"tokens {self.tokens.shape} and parents {self.parents.shape} of a tree must both be [nodes]"
            )
        depth, ancestors = _topology(self.parents.tolist())
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "ancestors", ancestors)

    @classmethod
    def assemble(cls, tokens: IntArray, parents: IntArray, depth: IntArray, ancestors: BoolArray) -> Tree:
        """A tree whose topology is known already: nothing is checked or computed (2 us)."""
        tree = object.__new__(cls)
        object.__setattr__(tree, "tokens", tokens)
        object.__setattr__(tree, "parents", parents)
        object.__setattr__(tree, "depth", depth)
        object.__setattr__(tree, "ancestors", ancestors)
        return tree

    @classmethod
    def chain(cls, tokens: Sequence[int] | IntArray) -> Tree:
        """The tree of a single path: tokens[0] is the root, each token follows the one before."""
        shape = Template.chain(len(tokens) - 1)
        return Tree.assemble(np.asarray(tokens, np.int64), shape.parents, shape.depth, shape.ancestors)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.tokens)

    def children(self, node: int) -> list[int]:
        """Indices of a node's children, in the order in which they were drawn."""
        children: list[int] = np.flatnonzero(self.parents == node).tolist()
        return children

    def chosen(self, order: IntArray) -> Tree:
        """The tree of the nodes `order` [n], in this order; parents must come before their children in it."""
        place = np.full(self.num_nodes, -1)
        place[order] = np.arange(len(order))
        parents = np.where(self.parents[order] < 0, -1, place[self.parents[order]])
        return Tree.assemble(
            self.tokens[order], parents, self.depth[order], np.ascontiguousarray(self.ancestors[np.ix_(order, order)])
        )

    def truncated(self, num_nodes: int) -> Tree:
        """The first nodes of the tree, at least the root; the tree itself when it is small enough."""
        if num_nodes >= self.num_nodes:
            return self
        n = max(1, num_nodes)
        ancestors = np.ascontiguousarray(self.ancestors[:n, :n])
        return Tree.assemble(self.tokens[:n], self.parents[:n], self.depth[:n], ancestors)


@dataclass(frozen=True, slots=True)
class Template:
    """A fixed topology for candidates of draft heads: the last rank of a path picks from its depth's head.

    The order of the paths is kept, so a list that was made best-first (all the named ones) has the best tree
    of n nodes as its first n nodes.

    Attributes:
        paths: rank paths of all nodes but the root, parents before children; () is the root and is left out.
        parents, depth, ancestors: as in Tree.
        rank: int64 [N], the last rank of each path; 0 for the root.

    Raises:
        RequestError: a path is empty, repeated, negative, or stands before or without its parent.
    """

    paths: tuple[Path, ...]
    parents: IntArray = field(init=False, repr=False, compare=False)
    depth: IntArray = field(init=False, repr=False, compare=False)
    ancestors: BoolArray = field(init=False, repr=False, compare=False)
    rank: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parents = _parents_of(self.paths)
        depth, ancestors = _topology(parents)
        rank = np.array([0, *(path[-1] for path in self.paths)], np.int64)
        for name, value in (("parents", np.array(parents, np.int64)), ("depth", depth)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "ancestors", ancestors)
        object.__setattr__(self, "rank", rank)

    @classmethod
    def named(cls, name: str) -> Template:
        """One of the trees in NAMED_TREES. RequestError lists the names when there is no such tree."""
        if name not in NAMED_TREES:
            raise RequestError(f"no tree is called {name!r}; choose one of {', '.join(sorted(NAMED_TREES))}")
        return cls.parse(NAMED_TREES[name])

    @classmethod
    def parse(cls, text: str) -> Template:
        """A template from rank paths such as "0 00 1 10"; ranks above 9 are written with dots: "12. 12.0"."""
        return _parse(text)

    @classmethod
    def resolve(cls, text: str) -> Template:
        """A template from what a user wrote: the name of a tree, or rank paths."""
        return cls.parse(text) if text.lstrip()[:1].isdigit() else cls.named(text)

    @classmethod
    def chain(cls, length: int) -> Template:
        """A single path of `length` drafts under the root, each the first choice of its head."""
        return _chain(length)

    @classmethod
    def dynamic(cls, num_heads: int, num_ranks: int, num_nodes: int) -> Template:
        """All nodes that can be among the `num_nodes` most probable, whatever the heads say of their ranks.

        A node that takes ranks r1, r2, ... is no more probable than any of the prod(ri + 1) nodes of its depth with
        ranks no higher, nor than these nodes' ancestors, so it needs no place when they are too many. Choosing the most
        probable nodes of this template is best-first construction (the heap of DySpec, arXiv 2410.11744), in numpy and
        with the topology computed once. Heads that read the path (Hydra) may give a worse rank likelier children; the
        template then holds most of the best nodes, not surely all.
        """
        return _dynamic(num_heads, num_ranks, num_nodes)

    @property
    def text(self) -> str:
        """The rank paths as `parse` reads them."""
        return " ".join(_path_text(path) for path in self.paths)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.paths) + 1

    @property
    def max_depth(self) -> int:
        """Number of draft heads that the template reads."""
        return int(self.depth.max())

    def limited(self, num_heads: int, num_ranks: int) -> Template:
        """The part of the template that `num_heads` draft heads with `num_ranks` candidates each can fill."""
        fits = [path for path in self.paths if len(path) <= num_heads and max(path) < num_ranks]
        return self if len(fits) == len(self.paths) else Template(tuple(fits))

    def check(self, num_heads: int, num_ranks: int) -> None:
        """Raise RequestError unless the template fits `num_heads` heads with `num_ranks` candidates each."""
        if self.max_depth > num_heads:
            raise RequestError(
                f"the tree is {self.max_depth} deep but there are {num_heads} draft heads; choose one no deeper"
            )
        if self.num_nodes > 1 and (highest := int(self.rank.max())) >= num_ranks:
            raise RequestError(
                f"the tree asks for candidate {highest} of a draft head, which gives {num_ranks}"
                f" (0 to {num_ranks - 1}); choose a narrower tree"
            )

    def check_monotone(self) -> None:
        """Raise RequestError where a candidate is in the tree, or followed by others, and a better one is not."""
        known, inner = set(self.paths), {path[:-1] for path in self.paths}
        for path in self.paths:
            better = (*path[:-1], path[-1] - 1)
            if path[-1] and better not in known:
                raise RequestError(f"the tree has path {_path_text(path)} without {_path_text(better)}; add it before")
            if path[-1] and path in inner and better not in inner:
                raise RequestError(
                    f"the tree goes on from path {_path_text(path)} but not from {_path_text(better)}, which is more"
                    f" probable; add {_path_text((*better, 0))}"
                )

    def fill(self, root: int, candidates: IntArray) -> Tree:
        """The tree of this shape over `candidates`.

        Args:
            root: token of node 0.
            candidates: int64 [heads, ranks], best first. See `check` for what fits.
        """
        heads, ranks = candidates.shape
        tokens = np.empty(len(self.rank), np.int64)
        tokens[0] = root
        try:
            tokens[1:] = candidates[self.depth[1:] - 1, self.rank[1:]]
        except IndexError:
            self.check(heads, ranks)
            raise
        return Tree.assemble(tokens, self.parents, self.depth, self.ancestors)


def _parents_of(paths: Sequence[Path]) -> list[int]:
    """Parent node of every node, the root included."""
    nodes: dict[Path, int] = {(): 0}
    parents = [-1]
    for node, path in enumerate(paths, start=1):
        if not path or min(path) < 0:
            raise RequestError(f"{path} is not a rank path: give one rank of 0 or more per level")
        if path in nodes:
            raise RequestError(f"the tree lists path {_path_text(path)} twice; list every path once")
        if path[:-1] not in nodes:
            raise RequestError(
                f"path {_path_text(path)} of the tree has no parent before it; list {_path_text(path[:-1])} first"
            )
        parents.append(nodes[path[:-1]])
        nodes[path] = node
    return parents


def _path_text(path: Path) -> str:
    if max(path) < 10:
        return "".join(map(str, path))
    return ".".join(map(str, path)) + ("." if len(path) == 1 else "")


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Template:
    paths = []
    for word in text.split():
        ranks = word.removesuffix(".").split(".") if "." in word else list(word)
        if not all(rank.isascii() and rank.isdigit() for rank in ranks):
            raise RequestError(f"{word!r} is not a rank path; write a tree as digits, for example '0 00 1'")
        paths.append(tuple(map(int, ranks)))
    return Template(tuple(paths))


@functools.lru_cache(maxsize=16)
def _dynamic(num_heads: int, num_ranks: int, num_nodes: int) -> Template:
    # With each path, how many nodes of its depth are no less probable, itself included, and how many before its depth.
    level: list[tuple[Path, int, int]] = [((), 1, 0)]
    paths: list[Path] = []
    for _ in range(num_heads):
        level = [
            ((*path, rank), beside * (rank + 1), before + beside * (rank + 1))
            for path, beside, before in level
            for rank in range(min(num_ranks, (num_nodes - 1 - before) // beside))
        ]
        paths += [path for path, _, _ in level]
    return Template(tuple(paths))


@functools.lru_cache(maxsize=256)
def _chain(length: int) -> Template:
    if length < 0:
        raise RequestError(f"a chain of {length} drafts cannot be; give 0 or more")
    return Template(tuple((0,) * depth for depth in range(1, length + 1)))
