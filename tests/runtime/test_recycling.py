"""Token Recycling: against a dictionary of what the model last said after each token, and on a real loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.drafters.recycling import RANKS, RecyclingDrafter
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.tree import Template, Tree

VOCAB = 12
TEMPLATE = Template.parse("0 1 2 00 01 10 000")


def said(candidates: list[list[int]]) -> StepOutput:
    """An output whose rows have these most probable tokens."""
    ids = np.array(candidates, np.int64)
    return StepOutput(
        ids, np.zeros(ids.shape, np.float32), np.zeros(len(ids), np.float32), np.zeros((1, 1), np.float32)
    )


candidates = st.permutations(range(VOCAB)).map(lambda order: order[:RANKS])
steps = st.lists(st.lists(st.tuples(st.integers(0, VOCAB - 1), candidates), min_size=1, max_size=6), max_size=12)


def learn(drafter: RecyclingDrafter, rows: list[tuple[int, list[int]]]) -> None:
    """A tree of these tokens was verified, all under the first of them, and the model said this after each."""
    tree = Tree(np.array([token for token, _ in rows]), np.array([-1, *[0] * (len(rows) - 1)]))
    drafter._ranks = np.arange(-1, len(rows) - 1)
    drafter.observe(Proposal(tree, np.ones(len(rows))), [0], [0], said([each for _, each in rows]))


@given(steps)
def test_a_tree_is_what_the_model_last_said(history: list[list[tuple[int, list[int]]]]) -> None:
    drafter, last = RecyclingDrafter(VOCAB, TEMPLATE), dict[int, list[int]]()
    for rows in history:
        learn(drafter, rows)
        last |= dict(rows)
    for root in range(VOCAB):
        proposal = drafter.propose(root, 99)
        expected = set()
        for path in TEMPLATE.paths:
            tokens = [root]
            while len(tokens) <= len(path) and tokens[-1] in last:
                tokens.append(last[tokens[-1]][path[len(tokens) - 1]])
            if len(tokens) == len(path) + 1:
                expected.add(tuple(tokens))
        tree = proposal.tree
        found = {tuple(tree.tokens[tree.ancestors[node]][np.argsort(tree.depth[tree.ancestors[node]])].tolist())
                 for node in range(1, tree.num_nodes)}  # fmt: skip
        assert found == expected
        assert (tree.parents[1:] < np.arange(1, tree.num_nodes)).all()
        assert (proposal.probability[1:] <= proposal.probability[tree.parents[1:]]).all()


@given(steps, st.integers(1, 8))
def test_few_nodes_are_the_most_probable_ones(history: list[list[tuple[int, list[int]]]], count: int) -> None:
    drafter = RecyclingDrafter(VOCAB, TEMPLATE)
    for rows in history:
        learn(drafter, rows)
    for root in range(VOCAB):
        whole, part = drafter.propose(root, 99), drafter.propose(root, count)
        assert part.tree.tokens.tolist() == whole.tree.tokens[:count].tolist()
        assert part.tree.parents.tolist() == whole.tree.parents[:count].tolist()


def test_every_verified_node_renews_its_row_and_a_new_text_keeps_them() -> None:
    drafter = RecyclingDrafter(VOCAB, TEMPLATE)
    learn(drafter, [(3, [4, 5, 6, 7, 8, 9, 10, 11]), (7, [1, 2, 3, 0, 4, 5, 6, 8])])  # node 7 was rejected
    drafter.begin([1, 2, 3], said([[9, 8, 7, 6, 5, 4, 3, 2]]))
    assert drafter.propose(7, 4).tree.tokens.tolist() == [7, 1, 2, 3]
    assert drafter.matrix[2].tolist() == [9, 8, 7, 6, 5, 4, 3, 2]  # after the token before the root


@pytest.mark.parametrize("is_right", [False, True])
def test_estimates_follow_what_happens(is_right: bool) -> None:
    drafter = RecyclingDrafter(VOCAB, TEMPLATE)
    order = [4, 5, 6, 7, 8, 9, 10, 11]
    drafter._renew(np.array([3]), np.array([order]))
    before = drafter.propose(3, 2).probability[1]
    for _ in range(3000):
        proposal = drafter.propose(3, 2)
        path = [0, 1] if is_right else [0]
        drafter.observe(proposal, path, [4, 3] if is_right else [3], said([order, order]))
    after = drafter.propose(3, 2).probability[1]
    assert before < after < 1 if is_right else after < 0.01


def test_drafting_changes_no_text_and_learns(model: Model, prompt: list[int], answer: list[int]) -> None:
    options = Options(draft="recycling", max_new_tokens=64, ignore_eos=True, raw=True, adaptive=False)
    first = model.generate(prompt, options)
    again = model.generate(prompt, options)
    assert first.token_ids == again.token_ids == answer
    assert again.tokens_per_step > max(first.tokens_per_step, 1.5)  # warm from the first


def test_what_was_learnt_goes_on_from_a_file(
    model: Model, llama_bundle: Path, prompt: list[int], tmp_path: Path
) -> None:
    from seqrt.runtime.model import load

    changes: dict[str, Any] = {"draft": "recycling", "ignore_eos": True, "adaptive": False, "max_new_tokens": 48}
    options = Options(memory=str(tmp_path / "memory.npy"), **changes)
    model.generate(prompt, options)
    model.save_memory(options)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.npy"]
    other = load(llama_bundle, threads=1)
    cold = other.generate(prompt, Options(**changes))
    warm = other.generate(prompt, options)
    assert warm.token_ids == cold.token_ids
    assert warm.tokens_per_step > cold.tokens_per_step


def test_memory_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "memory.npy"
    good = np.zeros((VOCAB + 1, RANKS), np.int32)
    np.save(file, good)
    RecyclingDrafter(VOCAB, TEMPLATE, file)
    np.save(file, good + VOCAB + 1)
    for wrong in (good[:-1], good.astype(np.int64), good + VOCAB + 1, good - 1):
        np.save(file, wrong)
        with pytest.raises(RequestError, match=r"--memory .*memory.npy is of another model; choose another file"):
            RecyclingDrafter(VOCAB, TEMPLATE, file)
    np.savez(tmp_path / "memory.npz", good)
    with pytest.raises(RequestError, match="is no file that seqrt wrote"):
        RecyclingDrafter(VOCAB, TEMPLATE, tmp_path / "memory.npz")
    np.save(file, good)
    for data in (b"", b"text", b"PK\x03\x04damaged", file.read_bytes()[:-9]):
        file.write_bytes(data)
        with pytest.raises(RequestError, match="is no file that seqrt wrote; choose another file"):
            RecyclingDrafter(VOCAB, TEMPLATE, file)
    with pytest.raises(RequestError, match=r"is in no folder that exists; make .*nowhere first"):
        RecyclingDrafter(VOCAB, TEMPLATE, tmp_path / "nowhere" / "memory.npy")
    with pytest.raises(RequestError, match=r"--memory .* cannot be written: .*; choose another file"):
        RecyclingDrafter(VOCAB, TEMPLATE).save(tmp_path)
    with pytest.raises(RequestError, match="the tree asks for candidate 8"):
        RecyclingDrafter(VOCAB, Template.parse("0 8"))
