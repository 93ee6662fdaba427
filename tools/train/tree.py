"""A static draft tree for trained heads, from how often the guess of each rank was right.

Greedy best-first: the score of a node is the product of the accuracies along its path, and the best next
sibling or first child of a chosen node is added until the tree is full. So every prefix of the result is the
best smaller tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

Path = tuple[int, ...]
"""The rank of the guess taken at each depth."""

FLOOR = 1e-9
"""Stands for an accuracy of zero, so that a tree can be filled whatever was measured."""


def best_first(accuracy: Sequence[Sequence[float]], num_nodes: int) -> list[Path]:
    """The ``num_nodes - 1`` best paths below the root, best first.

    Args:
        accuracy: ``[heads][ranks]``: share of positions at which the guess of that rank is right.
        num_nodes: Nodes of the tree, the root included.
    """
    accuracy = [[max(share, FLOOR) for share in row] for row in accuracy]
    waiting: list[tuple[float, Path]] = [(-accuracy[0][0], (0,))]
    chosen: list[Path] = []
    while waiting and len(chosen) < num_nodes - 1:
        score, path = heapq.heappop(waiting)
        chosen.append(path)
        depth, rank = len(path), path[-1]
        if rank + 1 < len(accuracy[depth - 1]):
            sibling = score / accuracy[depth - 1][rank] * accuracy[depth - 1][rank + 1]
            heapq.heappush(waiting, (sibling, (*path[:-1], rank + 1)))
        if depth < len(accuracy):
            heapq.heappush(waiting, (score * accuracy[depth][0], (*path, 0)))
    return chosen


def digits(paths: Sequence[Path]) -> list[str]:
    """Paths as digit strings, the form in which trees are published."""
    return ["".join(map(str, path)) for path in paths]


def tokens_per_step(ranks: Tensor, paths: Sequence[Path]) -> float:
    """Mean tokens a step would emit, drafting at every position.

    Args:
        ranks: ``[N, K]``: the rank at which head k had the right token; any larger number where it had not.
        paths: The tree, closed under prefixes.
    """
    depth = torch.zeros(len(ranks), dtype=torch.int64)
    for path in paths:
        inside = (ranks[:, : len(path)] == torch.tensor(path)).all(dim=1)
        depth = torch.where(inside, depth.clamp(min=len(path)), depth)
    return 1.0 + depth.double().mean().item()
