"""Token trees against a plain walk over parents, and the topology counts that the trees' authors report."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.named_trees import NAMED_TREES
from seqrt.runtime.tree import Path, Template, Tree


@st.composite
def parent_lists(draw: st.DrawFn, max_nodes: int = 40) -> list[int]:
    n = draw(st.integers(1, max_nodes))
    return [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]


def lineage(parents: list[int], node: int) -> list[int]:
    found = []
    while node != -1:
        found.append(node)
        node = parents[node]
    return found


def make(parents: list[int]) -> Tree:
    return Tree(np.arange(len(parents), dtype=np.int64) + 100, np.array(parents, np.int64))


@given(parent_lists())
def test_depth_ancestors_and_children_follow_the_parents(parents: list[int]) -> None:
    tree = make(parents)
    expected = np.zeros((len(parents), len(parents)), bool)
    for node in range(len(parents)):
        expected[node, lineage(parents, node)] = True
        assert tree.children(node) == [i for i, parent in enumerate(parents) if parent == node]
    assert tree.ancestors.dtype == np.bool_
    np.testing.assert_array_equal(tree.ancestors, expected)
    np.testing.assert_array_equal(tree.depth, expected.sum(1) - 1)
    assert tree.num_nodes == len(parents)


@given(parent_lists(), st.integers(-2, 50))
def test_a_truncated_tree_is_the_tree_of_the_first_nodes(parents: list[int], n: int) -> None:
    kept = max(1, min(n, len(parents)))
    short, expected = make(parents).truncated(n), make(parents[:kept])
    for name in ("tokens", "parents", "depth", "ancestors"):
        np.testing.assert_array_equal(getattr(short, name), getattr(expected, name))
    assert short.ancestors.flags.c_contiguous


@given(st.lists(st.integers(0, 99), min_size=1, max_size=70))
def test_a_chain_is_one_path(tokens: list[int]) -> None:
    tree = Tree.chain(tokens)
    assert tree.tokens.tolist() == tokens
    assert tree.parents.tolist() == list(range(-1, len(tokens) - 1))
    assert tree.depth.tolist() == list(range(len(tokens)))
    np.testing.assert_array_equal(tree.ancestors, np.tri(len(tokens), dtype=bool))


@pytest.mark.parametrize("parents", [[0], [], [-1, 1], [-1, 0, 2], [-1, -1]])
def test_parents_that_make_no_tree_are_refused(parents: list[int]) -> None:
    with pytest.raises(RequestError, match=r"root|parents must stand before"):
        make(parents)


def test_tokens_and_parents_of_different_length_are_refused() -> None:
    with pytest.raises(RequestError, match=r"tokens \(2,\) and parents \(1,\)"):
        Tree(np.zeros(2, np.int64), np.array([-1], np.int64))


# speculative.md section 1: nodes per depth and number of leaves of each published tree
PUBLISHED = {
    "mc_sim_7b_63": ((10, 28, 23, 2), 42),
    "vicuna_7b_stage2": ((10, 23, 23, 7), 42),
    "vicuna_7b_stage1": ((10, 32, 20, 1), 44),
    "vicuna_13b_stage2": ((10, 19, 25, 9), 42),
    "vicuna_33b_stage2": ((10, 24, 24, 5), 43),
    "zephyr_stage2": ((10, 27, 23, 3), 44),
    "token_recycling": ((8, 21, 25, 15, 8, 3), 40),
}


@pytest.mark.parametrize("name", sorted(NAMED_TREES))
def test_published_trees_have_their_published_shape(name: str) -> None:
    template = Template.named(name)
    per_depth, leaves = PUBLISHED[name]
    assert tuple(np.bincount(template.depth)[1:]) == per_depth
    assert template.num_nodes - len(set(template.parents[1:].tolist())) == leaves
    assert template.num_nodes == (81 if name == "token_recycling" else 64)
    for n in range(1, template.num_nodes + 1):
        assert Template(template.paths[: n - 1]).num_nodes == n
    assert Template.parse(template.text) == template
    assert Template.resolve(name) == template


def test_every_published_tree_is_named() -> None:
    assert set(NAMED_TREES) == set(PUBLISHED)


@given(st.sampled_from(sorted(NAMED_TREES)), st.integers(1, 64), st.integers(0, 2**31))
def test_fill_puts_each_candidate_at_its_path(name: str, n: int, seed: int) -> None:
    template = Template(Template.named(name).paths[: n - 1])
    candidates = np.random.default_rng(seed).integers(0, 50_000, (6, 10))
    tree = template.fill(7, candidates)
    assert tree.tokens[0] == 7
    nodes: dict[Path, int] = {path: i for i, path in enumerate(((), *template.paths))}
    for path in template.paths:
        node = nodes[path]
        assert tree.tokens[node] == candidates[len(path) - 1, path[-1]]
        assert tree.parents[node] == nodes[path[:-1]]
    plain = Tree(tree.tokens, tree.parents)
    np.testing.assert_array_equal(plain.ancestors, tree.ancestors)
    np.testing.assert_array_equal(plain.depth, tree.depth)
    assert tree.ancestors is template.ancestors  # shared, so nothing is computed in the loop


@given(st.sampled_from(sorted(NAMED_TREES)), st.integers(0, 5), st.integers(0, 11))
def test_limited_keeps_all_that_fits(name: str, num_heads: int, num_ranks: int) -> None:
    template = Template.named(name)
    part = template.limited(num_heads, num_ranks)
    part.check(num_heads, num_ranks)
    dropped = set(template.paths) - set(part.paths)
    assert all(len(path) > num_heads or max(path) >= num_ranks for path in dropped)
    assert part.paths == tuple(path for path in template.paths if path not in dropped)


def test_chain_template_and_dotted_ranks() -> None:
    assert Template.chain(3) == Template.parse("0 00 000")
    assert Template.chain(0).num_nodes == 1
    wide = Template.parse("12. 12.0 3")
    assert wide.paths == ((12,), (12, 0), (3,))
    assert Template.parse(wide.text) == wide


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 11", "path 11 of the tree has no parent before it; list 1 first"),
        ("00 0", "path 00 of the tree has no parent before it; list 0 first"),
        ("0 1 0", "the tree lists path 0 twice"),
        ("0 x", "'x' is not a rank path"),
        ("0 -1", "'-1' is not a rank path"),
        ("0 0..1", "is not a rank path"),
        ("0 ²", "is not a rank path"),
    ],
)
def test_bad_paths_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Template.parse(text)


def test_bad_paths_given_as_tuples_are_refused() -> None:
    with pytest.raises(RequestError, match=r"\(-1,\) is not a rank path"):
        Template(((-1,),))
    with pytest.raises(RequestError, match="a chain of -1 drafts"):
        Template.chain(-1)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        Template.resolve("mc_sim")
    assert all(name in str(caught.value) for name in NAMED_TREES)


def test_a_tree_that_does_not_fit_the_heads_is_refused() -> None:
    template = Template.parse("0 00 000 2")
    with pytest.raises(RequestError, match="3 deep but there are 2 draft heads"):
        template.fill(0, np.zeros((2, 3), np.int64))
    with pytest.raises(RequestError, match=r"candidate 2 of a draft head, which gives 2 \(0 to 1\)"):
        template.fill(0, np.zeros((3, 2), np.int64))
    template.check(3, 3)
    assert Template.chain(0).fill(5, np.zeros((0, 0), np.int64)).tokens.tolist() == [5]


@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 4),
    ranks=st.integers(1, 6),
    num_nodes=st.integers(1, 40),
)
def test_dynamic_templates_hold_what_a_heap_would_choose(seed: int, heads: int, ranks: int, num_nodes: int) -> None:
    """Best-first search over products of falling probabilities, against the best nodes of the template."""
    table = -np.sort(-(np.random.default_rng(seed).random((heads, ranks)) ** 3), axis=1)
    heap: list[tuple[float, Path]] = [(-float(table[0, 0]), (0,))]
    expected: list[float] = []
    while heap and len(expected) < num_nodes - 1:
        score, path = heapq.heappop(heap)
        expected.append(-score)
        depth, rank = len(path), path[-1]
        if rank + 1 < ranks:
            heapq.heappush(heap, (score / table[depth - 1, rank] * table[depth - 1, rank + 1], (*path[:-1], rank + 1)))
        if depth < heads:
            heapq.heappush(heap, (score * table[depth, 0], (*path, 0)))
    template = Template.dynamic(heads, ranks, num_nodes)
    template.check(heads, ranks)
    template.check_monotone()
    products = [float(np.prod([table[depth, rank] for depth, rank in enumerate(path)])) for path in template.paths]
    np.testing.assert_allclose(sorted(products, reverse=True)[: num_nodes - 1], expected)
