"""The decoding loop: drafting changes how fast tokens come, never which."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrt.runtime.decoder import Decoder, Floats, StepOutput
from seqrt.runtime.drafters import Drafter, Proposal
from seqrt.runtime.drafters.lookup import LookupDrafter
from seqrt.runtime.engines.ort import OrtEngine
from seqrt.runtime.generate import Loop
from seqrt.runtime.pacing import Pacer
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling
from seqrt.runtime.tree import Tree
from seqrt.runtime.verification import Verifier

Continuation = Callable[[Any, list[int], int], list[int]]
LogitsOf = Callable[[Any, list[int]], npt.NDArray[np.float32]]

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83]
COUNT = 64


@dataclass(slots=True)
class Scripted:
    """Draws random trees in which the tokens of `answer` occur with probability `accuracy`.

    Siblings may be equal, and the estimates are arbitrary: neither may change the text.
    """

    answer: list[int]
    accuracy: float = 1.0
    max_nodes: int = 10
    is_chain: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    name: str = "scripted"
    samples: bool = False
    place: int = 0

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        self.place = 0

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        size = min(self.max_nodes, max_nodes)
        size = size if self.is_chain else int(self.rng.integers(1, size + 1))
        parents, tokens, depth, probability = [-1], [root], [0], [1.0]
        for node in range(1, size):
            parent = node - 1 if self.is_chain else int(self.rng.integers(0, node))
            place = self.place + depth[parent] + 1
            is_right = self.rng.random() < self.accuracy and place < len(self.answer)
            tokens.append(self.answer[place] if is_right else int(self.rng.integers(0, 200)))
            parents.append(parent)
            depth.append(depth[parent] + 1)
            probability.append(probability[parent] * float(self.rng.uniform(0.3, 1)))
        return Proposal(Tree(np.array(tokens), np.array(parents)), np.array(probability))

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        self.place += len(tokens)


@dataclass(slots=True)
class Machine:
    """A bundle's decoder with its full logits, used by one run after another."""

    bundle: Path
    capacity: int
    decoder: Decoder = field(init=False)
    logits: OrtEngine = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = Decoder(self._engine("decoder"), lambda: self._engine("compaction"), self.capacity)
        self.logits = self._engine("logits")

    def _engine(self, role: str) -> OrtEngine:
        return OrtEngine(self.bundle / "graphs" / f"{role}.onnx", threads=1)

    def full_logits(self, hidden: Floats) -> Floats:
        self.logits.input("hidden", hidden.shape)[:] = hidden
        logits = self.logits.output("logits", (len(hidden), int(self.logits.outputs["logits"].shape[1])))
        self.logits.run()
        return logits.astype(np.float32)

    def loop(
        self,
        drafter: Drafter | None = None,
        sampling: Sampling | None = None,
        *,
        adaptive: bool = False,
        accept: str | None = None,
        max_rows: int = 64,
    ) -> Loop:
        self.decoder.reset()
        sampler = Sampler(sampling or Sampling(), int(self.logits.outputs["logits"].shape[1]))
        pacer = Pacer(max_rows, adaptive)
        return Loop(self.decoder, self.full_logits, sampler, Verifier(accept, sampler), drafter, pacer)


def take(loop: Loop, prompt: list[int], count: int) -> list[int]:
    """The first `count` tokens; what the last step decided beyond them is left out."""
    tokens: list[int] = []
    for decided in loop.run(prompt):
        tokens += decided
        if len(tokens) >= count:
            break
    return tokens[:count]


@pytest.fixture(scope="module")
def machine(llama_bundle: Path) -> Machine:
    return Machine(llama_bundle, 1024)


@pytest.fixture(scope="module")
def narrow(mistral_bundle: Path) -> Machine:
    """Capacity and positions end at 128; the attention window is 16."""
    return Machine(mistral_bundle, 128)


@pytest.fixture(scope="module")
def answer(llama: Any, continuation: Continuation) -> list[int]:
    tokens = continuation(llama, PROMPT, 2 * COUNT)
    assert len(set(tokens)) > 10, "a text that stands still would hide errors"
    return tokens


def test_plain_decoding_is_that_of_transformers(machine: Machine, answer: list[int]) -> None:
    loop = machine.loop()
    assert take(loop, PROMPT, COUNT) == answer[:COUNT]
    assert loop.trace.rows == loop.trace.emitted == [1] * (COUNT - 1)
    assert loop.trace.accepted_depth == []


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    accuracy=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    adaptive=st.booleans(),
    max_nodes=st.integers(1, 40),
    accept=st.sampled_from([None, "greedy", "match"]),
)
def test_greedy_text_does_not_depend_on_the_drafts(
    machine: Machine,
    answer: list[int],
    seed: int,
    accuracy: float,
    adaptive: bool,
    max_nodes: int,
    accept: str | None,
) -> None:
    drafter = Scripted(answer, accuracy, max_nodes, rng=np.random.default_rng(seed))
    loop = machine.loop(drafter, adaptive=adaptive, accept=accept)
    assert take(loop, PROMPT, COUNT) == answer[:COUNT]


@pytest.mark.parametrize("length", [1, 60, 115, 127])
def test_up_to_the_last_position_with_and_without_drafts(
    narrow: Machine, mistral: Any, continuation: Continuation, length: int
) -> None:
    """The model has no rotation beyond its positions: drafts must not reach there."""
    prompt = [int(token) for token in np.random.default_rng(length).integers(0, 200, length)]
    count = 128 - length
    expected = continuation(mistral, prompt, count)
    assert take(narrow.loop(), prompt, count) == expected
    for seed, accuracy in enumerate([0.0, 0.5, 1.0, 1.0]):
        for is_chain in (False, True):
            drafter = Scripted(expected, accuracy, 20, is_chain, np.random.default_rng(seed))
            for adaptive in (False, True):
                assert take(narrow.loop(drafter, adaptive=adaptive), prompt, count) == expected


def test_more_rows_wanted_than_the_cache_holds(narrow: Machine, mistral: Any, continuation: Continuation) -> None:
    prompt = PROMPT * 3
    expected = continuation(mistral, prompt, 80)
    drafter = Scripted(expected, 0.5, 2000, is_chain=True)
    assert take(narrow.loop(drafter, max_rows=2000), prompt, 80) == expected


@pytest.mark.parametrize("adaptive", [False, True])
def test_lookup_copies_and_keeps_the_text(
    narrow: Machine, mistral: Any, continuation: Continuation, adaptive: bool
) -> None:
    prompt = PROMPT + PROMPT
    expected = continuation(mistral, prompt, 90)
    loop = narrow.loop(LookupDrafter(), adaptive=adaptive)
    assert take(loop, prompt, 90) == expected
    assert max(loop.trace.rows) > 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.7, top_k=20, seed=2),
        Sampling(temperature=1.3, top_p=0.9, min_p=0.02, seed=3),
        Sampling(temperature=20.0, seed=4),
        Sampling(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4, seed=5),
        Sampling(repetition_penalty=1.5),
        Sampling(presence_penalty=2.0, no_repeat_ngram=2),
        Sampling(logit_bias={7: 3.0, 11: -4.0}),
    ],
    ids=repr,
)
def test_one_seed_gives_one_text_with_and_without_drafts(machine: Machine, sampling: Sampling) -> None:
    plain = take(machine.loop(sampling=sampling), PROMPT, COUNT)
    for seed, accuracy in enumerate([0.0, 0.6, 1.0]):
        for adaptive in (False, True):
            drafter = Scripted(plain, accuracy, rng=np.random.default_rng(seed))
            assert take(machine.loop(drafter, sampling, adaptive=adaptive), PROMPT, COUNT) == plain
    chain = machine.loop(Scripted(plain, is_chain=True), sampling)
    assert take(chain, PROMPT, COUNT) == plain
    assert len(chain.trace.rows) <= COUNT // 10 + 1


def test_different_seeds_give_different_texts(machine: Machine) -> None:
    texts = {tuple(take(machine.loop(sampling=Sampling(temperature=1.0, seed=s)), PROMPT, 20)) for s in range(5)}
    assert len(texts) == 5


def test_right_drafts_are_all_accepted(machine: Machine, answer: list[int]) -> None:
    """A chain of 4 right drafts: every step decides 5 tokens."""
    loop = machine.loop(Scripted(answer, max_nodes=5, is_chain=True))
    assert take(loop, PROMPT, 61) == answer[:61]
    trace = loop.trace
    assert trace.rows == trace.emitted == [5] * 12
    assert trace.accepted_depth == [(4, 4)] * 12
    assert len(trace.arrival_seconds) == 61
    assert trace.arrival_seconds == sorted(trace.arrival_seconds)
    assert 0 < trace.prefill_seconds <= trace.arrival_seconds[0]


@pytest.mark.parametrize("is_drafted", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=50.0, seed=0), Sampling(repetition_penalty=2.0)])
def test_log_probabilities_are_those_of_the_model(
    machine: Machine, llama: Any, logits_of: LogitsOf, sampling: Sampling, is_drafted: bool
) -> None:
    """Before temperature and penalties; tokens outside the engine's candidates included."""
    drafter = Scripted(take(machine.loop(sampling=sampling), PROMPT, COUNT)) if is_drafted else None
    loop = machine.loop(drafter, sampling)
    loop.log_probabilities = []
    tokens = take(loop, PROMPT, COUNT)
    logits = logits_of(llama, PROMPT + tokens)[len(PROMPT) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(loop.log_probabilities[:COUNT], expected[np.arange(COUNT), tokens], atol=2e-4)
    if sampling.temperature > 1:
        ranks = (logits > logits[np.arange(COUNT), tokens, None]).sum(1)
        assert ranks.max() >= 256, "no token came from outside the candidates"


def test_reused_rows_are_not_computed_again(
    machine: Machine, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine.loop()
    take(first, PROMPT, 10)
    machine.decoder.reset(len(PROMPT) - 4)
    sampler = Sampler(Sampling(), int(machine.logits.outputs["logits"].shape[1]))
    decoder, steps = machine.decoder, []
    step = decoder.step

    def counted(tokens: npt.NDArray[np.int64], *rest: Any) -> StepOutput:
        steps.append(len(tokens))
        return step(tokens, *rest)

    monkeypatch.setattr(decoder, "step", counted)
    loop = Loop(decoder, machine.full_logits, sampler, Verifier(None, sampler), None, Pacer(1))
    tokens: list[int] = []
    for decided in loop.run(PROMPT, len(PROMPT) - 4):
        tokens += decided
        if len(tokens) == 20:
            break
    assert tokens == answer[:20]
    assert steps == [4] + [1] * 19
