"""Tuning: replays against real decoding, the search against all trees."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import DYNAMIC, Options
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.tree import Path as RankPath
from seqrt.runtime.tree import Template, Tree
from seqrt.runtime.tune import Place, Recording, _Everyone, choose, chosen, record, replay, tune

PROMPTS = [Prompt(turns=("the rest of the string",)), Prompt(turns=("in the tool", "on the list"))]
TOKENS = 40
FREE = np.ones(64)  # every step takes a second
NO_DRAFT_COST = np.zeros(64)


def options(draft: str, tree: str | None = None) -> Options:
    return Options(draft=draft, tree=tree, max_new_tokens=TOKENS, ignore_eos=True)


def recorded(model: Model, *wanted: Options) -> Recording:
    return record(model, PROMPTS, wanted, deadline=perf_counter() + 60)


def steps_of(model: Model, wanted: Options) -> int:
    """Steps that the real loop takes for the answers that were recorded."""
    from seqrt.runtime.conversation import play

    steps = 0
    for prompt in PROMPTS:
        model.forget()
        steps += sum(stream.finish().steps for stream in play(model, prompt, wanted))
    return steps


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_replays_of_lookup_take_the_steps_of_the_real_loop(model: Model, rows: int) -> None:
    found = recorded(model, options("lookup"))
    speed, per_step = replay(found.answers["lookup"], rows, None, FREE, NO_DRAFT_COST)
    tokens = 3 * (TOKENS - 1)
    steps = steps_of(model, Options(**kwargs(options("lookup")) | {"adaptive": False, "max_rows": rows}))
    assert tokens / per_step == pytest.approx(steps)
    assert speed == pytest.approx(per_step)  # a step takes a second


def kwargs(wanted: Options) -> dict[str, Any]:
    return {"draft": wanted.draft, "tree": wanted.tree, "max_new_tokens": TOKENS, "ignore_eos": True}


@pytest.mark.parametrize("tree", ["0", "0 00", "0 1 00 2 01 10 000"])
@pytest.mark.parametrize(("bundle", "draft"), [("llama_bundle", "medusa"), ("hydra_bundle", "hydra")])
def test_replays_of_static_trees_take_the_steps_of_the_real_loop(
    tree: str, bundle: str, draft: str, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(bundle), threads=1)
    found = recorded(model, options(draft, DYNAMIC))
    paths = frozenset(Template.parse(tree).paths)
    _, per_step = replay(found.answers[draft], 1 + len(paths), paths, FREE, NO_DRAFT_COST)
    steps = steps_of(model, Options(**kwargs(options(draft, tree)) | {"adaptive": False}))
    assert 3 * (TOKENS - 1) / per_step == pytest.approx(steps)


def test_a_place_says_which_nodes_came_true() -> None:
    tree = Tree(np.array([5, 7, 8, 9, 7, 6]), np.array([-1, 0, 0, 1, 2, 4]))
    assert Place.of(tree, [8, 7, 6, 1]) == Place(((0,), (1,), (0, 0), (1, 0), (1, 0, 0)), (1, 3, 4))
    assert Place.of(tree, [7, 1]).right == (0,)
    assert Place.of(tree, []).right == ()
    assert Place.of(Tree.chain([5]), [1]) == Place((), ())


ALL_PATHS = tuple(path for depth in (1, 2) for path in itertools.product(range(3), repeat=depth))


@st.composite
def places(draw: st.DrawFn) -> list[list[Place]]:
    """Answers at each place of which all paths of two levels were proposed, some of which came true."""

    def place() -> Place:
        depth, ranks = draw(st.integers(0, 2)), draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        return came_true(ranks[:depth])

    return [[place() for _ in range(draw(st.integers(1, 6)))] for _ in range(draw(st.integers(1, 3)))]


def came_true(path: RankPath) -> Place:
    return Place(ALL_PATHS, tuple(ALL_PATHS.index(path[:level]) for level in range(1, len(path) + 1)))


def largest(answers: list[list[Place]], count: int) -> list[RankPath]:
    """The static tree of so many drafts, because only steps of so many rows are cheap."""
    costs = np.full(count + 1, 1e9)
    costs[-1] = 1.0
    choice = choose("x", Recording({"x": answers}, draft={"x": {}}), costs, ("static",))
    return [] if choice.tree is None else list(Template.parse(choice.tree).paths)


@given(places(), st.integers(1, 6))
def test_static_trees_hold_the_better_ranks_too(answers: list[list[Place]], count: int) -> None:
    paths = largest(answers, count)
    for path in paths:
        for better in itertools.product(*(range(rank + 1) for rank in path)):
            assert better in paths
    Template(tuple(paths)).check_monotone()


@given(
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.integers(1, 4),
)
def test_static_trees_are_right_most_often(first: list[int], second: tuple[int, int], count: int) -> None:
    """Against all trees of as many nodes, where better ranks are right more often, as those of heads are."""
    every = []
    for rank, times in enumerate(sorted(first, reverse=True)):
        below = [times * share // 20 for share in sorted(second, reverse=True)]
        every += [came_true((rank, under)) for under, number in enumerate(below) for _ in range(number)]
        every += [came_true((rank,))] * (times - sum(below))

    def yields(paths: Sequence[RankPath]) -> int:
        return sum(place.paths[node] in paths for place in every for node in place.right)

    trees = [
        paths
        for paths in itertools.combinations(ALL_PATHS, count)
        if all(len(path) == 1 or path[:1] in paths for path in paths)
    ]
    found = largest([every], count)
    if len(found) == count:  # else fewer paths than that ever came true
        assert yields(found) == max(map(yields, trees))


@given(places(), st.lists(st.floats(0.1, 3), min_size=4, max_size=4))
def test_the_choice_is_the_fastest_by_replay(answers: list[list[Place]], steps: list[float]) -> None:
    found = Recording({"x": answers}, draft={"x": {2: [0.1], 4: [0.3]}})
    costs = np.cumsum(steps)
    draft = np.array([0.1, 0.1, 0.2, 0.3])
    choice = choose("x", found, costs, (None,))
    speeds = [replay(answers, rows, None, costs, draft)[0] for rows in range(1, 5)]
    assert choice.tokens_per_second == pytest.approx(max(speeds), abs=1e-3)
    assert speeds[choice.rows - 1] == pytest.approx(max(speeds))


def test_acceptance_counts_by_depth_and_rank() -> None:
    right: list[tuple[int, ...]] = [(0,), (1,), (1, 5), (), (2,)]
    answers = [[Place(((0,), (1,), (2,), (0, 0), (1, 0), (1, 1)), nodes) for nodes in right]]
    choice = choose("x", Recording({"x": answers}, draft={"x": {}}), np.ones(3), (None,))
    assert choice.acceptance == ((0.2, 0.4, 0.2), (0.0, 0.3333, 0.0))


def test_tuning_measures_costs_chooses_and_leaves_the_model_as_it_was(model: Model, prompt: list[int]) -> None:
    before = model.generate(prompt, max_new_tokens=20, ignore_eos=True).token_ids
    said: list[str] = []
    wanted = [options("lookup"), options("recycling", DYNAMIC), options("medusa", DYNAMIC)]
    tuning = tune(model, PROMPTS, wanted, 1, 60.0, said.append)
    assert said == ["recording", *(f"choosing for {one.draft}" for one in wanted), "measuring"]
    assert [choice.draft for choice in tuning.choices] == ["lookup", "recycling", "medusa"]
    assert tuning.rows[0] == 1
    assert tuning.prompts == 2
    assert tuning.positions == 3 * (TOKENS - 1)
    for one, choice in zip(wanted, tuning.choices, strict=True):
        assert choice.tokens_per_second >= tuning.plain_tokens_per_second * 0.999
        assert (choice.measured_tokens_per_second is None) == (choice.rows == 1)
        assert (choice.tree is not None) == (choice.rows > 1 and one.draft != "lookup")
        again = model.generate(prompt, chosen(one, choice), max_new_tokens=20)
        assert again.token_ids == before
    assert model.generate(prompt, max_new_tokens=20, ignore_eos=True).token_ids == before


@pytest.mark.parametrize("draft", ["hydra", "hydra++"])
def test_hydra_is_tuned_too(hydra_bundle: Path, draft: str) -> None:
    model = load(hydra_bundle, threads=1)
    (choice,) = tune(model, PROMPTS, [options(draft, DYNAMIC)], 1, 60.0).choices
    assert choice.rows >= 1
    found = recorded(model, options(draft, DYNAMIC))
    costs = np.linspace(1.0, 1.0001, 64, dtype=np.float64)  # rows are cheap: a large tree is chosen
    static = choose(draft, found, costs, ("static",))
    assert static.rows > 2
    model.generate("the tool", chosen(options(draft), static), max_new_tokens=8)


def test_answers_of_one_token_cannot_be_tuned_on(model: Model) -> None:
    with pytest.raises(RequestError, match="the answers to these prompts end at once; give others with --prompts"):
        tune(model, PROMPTS, [Options(draft="lookup", max_new_tokens=1)], 1, 60.0)


def test_short_answers_time_all_sizes(model: Model) -> None:
    short = Options(draft="lookup", max_new_tokens=5, ignore_eos=True)
    found = record(model, PROMPTS * 6, [short], deadline=perf_counter() + 60)
    assert all(found.step.values())


def test_recording_stops_at_its_deadline(model: Model) -> None:
    found = record(model, PROMPTS, [options("lookup")], deadline=0.0)
    assert found.prompts == 1
    assert len(found.answers["lookup"]) == 1


def test_recording_near_the_capacity_times_what_fits(mistral_bundle: Path) -> None:
    model = load(mistral_bundle, threads=1)
    recording = Recording({"lookup": []}, draft={"lookup": {}})
    lookup = model.drafter(options("lookup"))
    assert lookup is not None
    stream = model.stream([5, 6, 7] * 30, options("none"))
    stream.loop.drafter = _Everyone({"lookup": lookup}, stream.loop.decoder, recording, 64)
    assert stream.finish().new_tokens == 128 - 90
    assert not recording.step[64]
    assert recording.step[2]


@pytest.fixture
def tuned(llama_bundle: Path) -> Callable[..., Model]:
    """A model with a tuning of its own."""
    from seqrt.runtime.tuned import Choice, Machine, Tuning

    def make(**changes: Any) -> Model:
        model = load(llama_bundle, threads=1)
        choice: dict[str, Any] = {"draft": "medusa", "tree": "0 00", "rows": 3, "draft_ms": 1.0, "acceptance": ()}
        choice |= {"tokens_per_step": 1.5, "tokens_per_second": 9.0} | changes
        model.tuning = Tuning(
            machine=Machine.here(model.bundle, model.engines, 1),
            rows=(1, 2, 4),
            step_ms=(10.0, 15.0, 35.0),
            choices=(Choice(**choice),),
            prompts=1,
            positions=1,
            plain_tokens_per_second=8.0,
        )
        return model

    return make


def test_a_tuned_tree_is_verified_whole_where_nothing_is_measured(
    tuned: Callable[..., Model], prompt: list[int]
) -> None:
    def rows(model: Model, **changes: Any) -> set[int]:
        answer = model.generate(prompt, draft="medusa", max_new_tokens=20, ignore_eos=True, adaptive=False, **changes)
        return set(answer.trace.rows)

    assert rows(tuned()) == {3}
    assert rows(tuned(), tree="0 1 2 3") == {5}
    assert rows(tuned(), max_rows=2) == {2}
    assert rows(tuned(tree=DYNAMIC, rows=6)) == {6}
    assert rows(tuned(tree=None, rows=1)) == {1}
    assert rows(tuned(draft="lookup", tree=None)) == {8}  # the heads' own


def test_the_loop_starts_from_tuned_costs(tuned: Callable[..., Model]) -> None:
    model = tuned()
    pacer = model._pacer(Options(draft="medusa"))
    assert pacer.max_rows == 64
    pacer.seconds[1] = 2.0
    assert [pacer.cost(rows) for rows in (1, 2, 3, 4)] == pytest.approx([2.0, 3.0, 5.0, 7.0])
    pacer.seconds[4] = 1.0  # measured now
    assert pacer.cost(4) == 1.0
    assert pacer.cost(3) == pytest.approx(5.0)
    assert pacer.cost(6) >= pacer.cost(4)
    dynamic = tuned(tree=DYNAMIC)
    assert dynamic.drafter(Options(draft="medusa")).template.num_nodes > 64  # type: ignore[union-attr]
    assert model.drafter(Options(draft="medusa")).template.num_nodes == 8  # type: ignore[union-attr]
