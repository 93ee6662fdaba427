"""Drafts from a corpus, against a search that looks at the text itself."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.drafters.corpus import MAX_NGRAM, CorpusDrafter
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options

NOTHING = StepOutput(
    np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
)
DEPTH = 8

texts = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def begun(corpus: list[int], text: list[int], *, branches: bool = True) -> CorpusDrafter:
    drafter = CorpusDrafter(np.array(corpus, np.int64), branches=branches)
    drafter.begin(text, NOTHING)
    return drafter


def continuations(corpus: list[int], text: list[int]) -> list[tuple[int, ...]]:
    """What followed each occurrence of the longest suffix of the text that the corpus has."""
    for size in range(min(MAX_NGRAM, len(text)), 0, -1):
        suffix = text[-size:]
        places = [i for i in range(len(corpus) - size + 1) if corpus[i : i + size] == suffix]
        if places:
            return [tuple(corpus[i + size : i + size + DEPTH]) for i in places]
    return []


def paths(proposal: Proposal) -> dict[tuple[int, ...], float]:
    """Tokens from below the root to each node, and the node's probability."""
    tree, found = proposal.tree, {}
    for node in range(1, tree.num_nodes):
        above = np.flatnonzero(tree.ancestors[node])
        found[tuple(tree.tokens[above[np.argsort(tree.depth[above])]].tolist()[1:])] = float(proposal.probability[node])
    return found


@given(corpus=texts, text=texts)
def test_a_tree_is_what_followed_the_longest_suffix(corpus: list[int], text: list[int]) -> None:
    proposal = begun(corpus, text).propose(text[-1], 500)
    followed = continuations(corpus, text)
    expected = {each[:length] for each in followed for length in range(1, len(each) + 1)}
    found = paths(proposal)
    assert found.keys() == expected
    counts = {path: sum(each[: len(path)] == path for each in followed) for path in expected}
    for path, probability in found.items():
        for other, less in found.items():
            assert (counts[path] > counts[other]) == (probability > less)
    assert all(found[path] <= found.get(path[:-1], 1.0) for path in found)
    assert (np.diff(proposal.probability) <= 0).all()


@given(corpus=texts, text=texts, count=st.integers(1, 12))
def test_few_nodes_are_the_most_frequent_ones(corpus: list[int], text: list[int], count: int) -> None:
    drafter = begun(corpus, text)
    whole, part = drafter.propose(text[-1], 500).tree, drafter.propose(text[-1], count).tree
    assert part.tokens.tolist() == whole.tokens[:count].tolist()
    assert part.parents.tolist() == whole.parents[:count].tolist()


@given(corpus=texts, text=texts)
def test_without_branches_the_most_frequent_path_is_left(corpus: list[int], text: list[int]) -> None:
    chain = begun(corpus, text, branches=False).propose(text[-1], 500)
    assert (np.diff(chain.tree.parents) == 1).all()
    followed, path = continuations(corpus, text), tuple[int, ...]()
    for token in chain.tree.tokens[1:].tolist():
        counts = [sum(each[: len(path) + 1] == (*path, other) for each in followed) for other in range(4)]
        assert counts[token] == max(counts)
        path = (*path, token)


def test_occurrences_are_looked_at_all_over_a_large_corpus() -> None:
    corpus = [1, 2] * 500 + [1, 3] * 500
    first = {path[0] for path in paths(begun(corpus, [1]).propose(1, 500))}
    assert first == {2, 3}


@pytest.mark.parametrize("is_right", [False, True])
def test_estimates_follow_what_happens(is_right: bool) -> None:
    drafter = begun([1, 2, 3] * 4, [1, 2])
    before = drafter.propose(2, 2).probability[1]
    for _ in range(80):
        proposal = drafter.propose(2, 2)
        drafter.observe(proposal, [0, 1] if is_right else [0], [3, 1, 2] if is_right else [1, 2], NOTHING)
    after = drafter.propose(2, 2).probability[1]
    assert after > before if is_right else after < before


def test_a_text_that_the_corpus_holds_is_drafted_whole(
    model: Model, prompt: list[int], answer: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("the rest of the string in the tool", encoding="utf-8")
    options = Options(draft="corpus", corpus=str(file), ignore_eos=True, adaptive=False, max_new_tokens=64)
    assert model.generate(prompt, options).token_ids == answer
    drafter = model.drafter(options)
    assert isinstance(drafter, CorpusDrafter)
    assert drafter._corpus == prompt
    for key in model._drafters:
        model._drafters[key] = CorpusDrafter(np.array([*prompt, *answer]))
    drafted = model.generate(prompt, options)
    assert drafted.token_ids == answer
    assert drafted.tokens_per_step > 4


def test_a_corpus_that_cannot_serve_is_refused(model: Model, tmp_path: Path) -> None:
    def refused(text: bytes | None) -> str:
        file = tmp_path / "corpus.txt"
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(text)
        with pytest.raises(RequestError) as error:
            model.generate("a", draft="corpus", corpus=str(file))
        return str(error.value).replace(str(file), "FILE")

    assert refused(None) == "--corpus FILE cannot be read: No such file or directory; give a readable file"
    assert refused(b" \n") == "--corpus FILE is empty; give a file with text like the answers that are wanted"
    assert refused(b"text\x00\xff\xfe") == "--corpus FILE is not UTF-8 text (byte 6); give a text file"
    model._tokenizer.add_tokens(["<far>"])  # type: ignore[union-attr]  # beyond the vocabulary, as some tokenizers have
    assert (
        refused(b"the <far> tool")
        == "--corpus FILE has token 272, the model's are 0 to 271; leave such special tokens out"
    )
    with pytest.raises(RequestError, match="--draft corpus needs a text to draft from; name one with --corpus FILE"):
        model.generate("a", draft="corpus")
    with pytest.raises(RequestError, match="--corpus is of no use to --draft lookup; choose --draft corpus"):
        model.generate("a", draft="lookup", corpus="x")
    with pytest.raises(RequestError, match="--memory is of no use to --draft none; choose --draft recycling"):
        model.generate("a", memory="x")
    with pytest.raises(RequestError, match="--tree is of no use to --draft lookup; choose --draft recycling or medusa"):
        model.generate("a", draft="lookup", tree="0")
