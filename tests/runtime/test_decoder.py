"""The cached decoder against transformers and against itself from scratch, over trees, paths and resets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.bundle import CHUNK
from seqrt.runtime.decoder import Decoder, StepOutput
from seqrt.runtime.engines.ort import OrtEngine
from seqrt.runtime.tree import Tree

LogitsOf = Callable[[Any, list[int]], npt.NDArray[np.float32]]

VOCAB = 200  # of the ids that are drawn; the models know some more


def open_decoder(bundle: Path, capacity: int) -> Decoder:
    def engine(role: str) -> OrtEngine:
        return OrtEngine(bundle / "graphs" / f"{role}.onnx", threads=1)

    return Decoder(engine("decoder"), lambda: engine("compaction"), capacity)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return tokens


def run(decoder: Decoder, tree: Tree) -> StepOutput:
    return decoder.step(tree.tokens, tree.ancestors, tree.depth, np.arange(tree.num_nodes))


def step_one(decoder: Decoder, token: int) -> StepOutput:
    """Plain decoding of one token."""
    output = run(decoder, Tree.chain([token]))
    decoder.commit([0])
    return output


def cache(decoder: Decoder) -> npt.NDArray[np.float32]:
    """Committed rows of every cache, `[caches, heads, rows, head_dim]`."""
    engine, found = decoder.engine, []
    for name, info in engine.inputs.items():
        if not name.startswith(("past_key.", "past_value.")):
            continue
        shape = (1, int(info.shape[1]), decoder._rows, int(info.shape[3]))
        found.append(engine.input(name, shape)[0, :, : decoder.past_len].astype(np.float32))
    assert found
    return np.array(found)


def assert_row(output: StepOutput, row: int, expected: npt.NDArray[np.float32]) -> None:
    """Row `row` of the outputs against all logits of transformers."""
    ids, logits = output.topk_ids[row], output.topk_logits[row]
    np.testing.assert_allclose(logits, expected[ids], atol=1e-4)
    np.testing.assert_allclose(logits, np.sort(expected)[::-1][: len(ids)], atol=1e-4)
    assert len(set(ids.tolist())) == len(ids)
    wide = expected.astype(np.float64)
    assert output.logsumexp[row] == pytest.approx(np.log(np.exp(wide - wide.max()).sum()) + wide.max(), abs=1e-4)


@pytest.fixture(scope="module")
def decoders(llama_bundle: Path, mistral_bundle: Path) -> dict[str, tuple[Decoder, Decoder]]:
    """Two decoders of each model: one under test, one that starts from scratch."""
    bundles = {"llama": (llama_bundle, 1024), "mistral": (mistral_bundle, 128)}
    return {
        name: (open_decoder(path, capacity), open_decoder(path, capacity)) for name, (path, capacity) in bundles.items()
    }


def test_prefill_in_chunks(llama: Any, llama_bundle: Path, logits_of: LogitsOf) -> None:
    """600 tokens: several chunks."""
    decoder, prompt = open_decoder(llama_bundle, 1024), random_tokens(600)
    outputs = decoder.prefill(prompt)
    expected = logits_of(llama, prompt)
    assert [len(output.hidden) for output in outputs] == [128, 128, 128, 128, 88]
    assert decoder.past_len == 600
    assert_row(outputs[-1], 0, expected[-1])
    hidden = np.concatenate([output.hidden for output in outputs])
    np.testing.assert_allclose(hidden @ llama.lm_head.weight.detach().numpy().T, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("cached", "length", "sizes"),
    [
        (0, 1, [1]),
        (0, 127, [127]),
        (0, 128, [127, 1]),
        (0, 129, [128, 1]),
        (0, 256, [128, 127, 1]),
        (1, 256, [127, 127, 1]),
        (100, 300, [28, 128, 44]),
        (255, 256, [1]),
    ],
)
def test_chunks_end_at_the_same_rows_whatever_is_cached(
    llama_bundle: Path, cached: int, length: int, sizes: list[int]
) -> None:
    """Whole chunks are computed in another way: which rows are in one must not depend on what was there before."""
    decoder, prompt = open_decoder(llama_bundle, 1024), random_tokens(length)
    if cached:
        decoder.prefill(prompt[:cached])
    assert [len(output.hidden) for output in decoder.prefill(prompt[cached:])] == sizes
    assert decoder.past_len == length


def test_cache_grows_while_decoding(llama: Any, llama_bundle: Path, logits_of: LogitsOf) -> None:
    decoder, text, sizes = open_decoder(llama_bundle, 1024), random_tokens(520), set()
    expected = logits_of(llama, text)
    decoder.prefill(text[:50])
    for i, token in enumerate(text[50:], start=50):
        assert_row(step_one(decoder, token), 0, expected[i])
        sizes.add(decoder._rows)
    assert len(sizes) > 3


def test_a_short_text_after_a_long_one_gets_a_small_cache(llama: Any, llama_bundle: Path, logits_of: LogitsOf) -> None:
    decoder, text = open_decoder(llama_bundle, 1000), random_tokens(900)
    decoder.prefill(text)
    large = decoder._rows
    decoder.reset(40)  # the beginning stays, and its rows are not computed again
    short = [*text[:40], *random_tokens(30, seed=1)]
    output = decoder.prefill(short[40:])[-1]
    assert decoder._rows < large / 4
    expected = logits_of(llama, short)
    np.testing.assert_allclose(output.topk_logits[0, 0], expected[-1].max(), atol=1e-3)
    for token in random_tokens(300, seed=2):  # and it grows again
        output = step_one(decoder, token)
        short.append(token)
    np.testing.assert_allclose(output.topk_logits[0, 0], logits_of(llama, short)[-1].max(), atol=1e-3)


def test_sliding_window_shorter_than_the_text(mistral: Any, mistral_bundle: Path, logits_of: LogitsOf) -> None:
    decoder, text = open_decoder(mistral_bundle, 128), random_tokens(128)
    expected = logits_of(mistral, text)
    assert_row(decoder.prefill(text[:40])[-1], 0, expected[39])
    for i, token in enumerate(text[40:], start=40):
        assert_row(step_one(decoder, token), 0, expected[i])


def test_only_the_rows_asked_for(llama: Any, llama_bundle: Path, logits_of: LogitsOf) -> None:
    decoder, text = open_decoder(llama_bundle, 1024), random_tokens(12)
    expected = logits_of(llama, text)
    chain = Tree.chain(text)
    output = decoder.step(chain.tokens, chain.ancestors, chain.depth, np.array([7, 2]))
    assert len(output.topk_ids) == 2
    assert_row(output, 0, expected[7])
    assert_row(output, 1, expected[2])
    assert len(decoder.step(chain.tokens, chain.ancestors, chain.depth, np.zeros(0, np.int64)).topk_ids) == 0


@dataclass(frozen=True, slots=True)
class Round:
    """A tree is verified; the path to `leaf` is kept, or nothing when the step is abandoned (None)."""

    tokens: list[int]
    parents: list[int]
    leaf: int | None

    @property
    def path(self) -> list[int]:
        path, node = [], -1 if self.leaf is None else self.leaf
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]


@dataclass(frozen=True, slots=True)
class Reset:
    """Back to this share of the committed rows."""

    share: float


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    size = draw(st.integers(1, 9))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]
    tokens = draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size))
    return Round(tokens, parents, draw(st.integers(0, size - 1) | st.just(size - 1) | st.none()))


histories = st.lists(rounds() | st.builds(Reset, st.floats(0, 1)), min_size=1, max_size=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral"])
@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 24), history=histories, last=st.integers(0, VOCAB - 1))
def test_any_trees_and_paths_leave_the_cache_of_the_same_text_from_scratch(
    decoders: dict[str, tuple[Decoder, Decoder]],
    llama: Any,
    mistral: Any,
    logits_of: LogitsOf,
    name: str,
    length: int,
    history: list[Round | Reset],
    last: int,
) -> None:
    (decoder, fresh), model = decoders[name], {"llama": llama, "mistral": mistral}[name]
    text = random_tokens(length, seed=length)
    decoder.reset()
    decoder.prefill(text)
    for event in history:
        if isinstance(event, Reset):
            text = text[: int(event.share * decoder.past_len)]
            decoder.reset(len(text))
            continue
        output = run(decoder, Tree(np.array(event.tokens), np.array(event.parents)))
        path = [event.tokens[node] for node in event.path]
        if not path:
            continue
        expected = logits_of(model, text + path)[len(text) :]
        for node, row in zip(event.path, expected, strict=True):
            assert_row(output, node, row)
        decoder.commit(event.path)
        text += path
    assert decoder.past_len == len(text)

    text.append(last)
    output = step_one(decoder, last)
    fresh.reset()
    expected_output = fresh.prefill(text)[-1]
    np.testing.assert_allclose(cache(decoder), cache(fresh), atol=1e-5)
    np.testing.assert_array_equal(output.topk_ids[0, :5], expected_output.topk_ids[0, :5])
    np.testing.assert_allclose(output.topk_logits, expected_output.topk_logits, atol=1e-4)
    np.testing.assert_allclose(output.hidden[-1], expected_output.hidden[-1], atol=1e-4)


def test_compaction_starts_only_when_rows_must_move(llama_bundle: Path) -> None:
    def never() -> OrtEngine:
        raise AssertionError("a path from the root on is in place already")

    decoder = Decoder(OrtEngine(llama_bundle / "graphs" / "decoder.onnx", threads=1), never, 1024)
    run(decoder, Tree(np.array([1, 2, 3, 4]), np.array([-1, 0, 1, 0])))
    decoder.commit([0, 1, 2])
    assert decoder.past_len == 3
    run(decoder, Tree(np.array([1, 2, 3]), np.array([-1, 0, 0])))
    with pytest.raises(AssertionError):
        decoder.commit([0, 2])


@pytest.mark.parametrize("length", [6, 9, -1])
def test_reset_to_rows_that_are_not_there(llama_bundle: Path, length: int) -> None:
    decoder = open_decoder(llama_bundle, 1024)
    decoder.prefill([5, 6, 7])
    run(decoder, Tree(np.array([1, 2, 3, 4]), np.array([-1, 0, 0, 2])))
    decoder.commit([0, 2])
    with pytest.raises(RequestError, match=rf"^cannot go back to {length} rows; 5 are in the cache, give no more$"):
        decoder.reset(length)
    decoder.reset(5)
    assert decoder.past_len == 5


def test_more_rows_than_the_cache_may_hold(mistral_bundle: Path) -> None:
    decoder = open_decoder(mistral_bundle, 16)
    decoder.prefill(random_tokens(16))
    chain = Tree.chain(random_tokens(CHUNK + 1))
    with pytest.raises(RequestError, match=rf"^{CHUNK + 17} rows do not fit into a cache of {CHUNK + 16}"):
        run(decoder, chain)


def test_reset_goes_back_to_a_prefix(llama: Any, llama_bundle: Path, logits_of: LogitsOf) -> None:
    decoder, text = open_decoder(llama_bundle, 1024), random_tokens(30)
    decoder.prefill(text)
    other = text[:11] + random_tokens(9, seed=5)
    decoder.reset(11)
    assert_row(decoder.prefill(other[11:])[-1], 0, logits_of(llama, other)[-1])


def test_copied_hidden_states_survive_the_next_step(llama_bundle: Path) -> None:
    decoder = open_decoder(llama_bundle, 1024)
    hidden = decoder.prefill(random_tokens(10))[-1].hidden
    before = hidden.copy()
    decoder.prefill(random_tokens(10, seed=3))
    np.testing.assert_array_equal(hidden, before)
