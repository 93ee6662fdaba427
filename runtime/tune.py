"""Finds the tree that is fastest here: what steps cost, what drafters get right, and the best of both.

Prompts are answered without drafting. At every token each drafter is asked what it would propose, and a step with some
number of rows is timed on the side. As the answer is known afterwards, decoding it with any tree can be replayed: where
its drafts match what follows, the step gets that far. Replays are exact for drafters that look at the text alone.

The best static tree of n nodes is the n most often right paths, a path counting as often as any that takes worse
ranks: where a candidate is in the tree, so are the better ones. This is Medusa's greedy construction (arXiv 2401.10774,
section 2.3.3) on counts instead of products of accuracies. A dynamic tree is the n nodes that the drafter itself puts
first. Of lexical units (arXiv 2405.15208) the lookahead k is chosen: what PADs behind each token say is recorded.
Of all, the one with the most tokens a second by replay and costs is chosen, as Sequoia does (arXiv 2402.12374,
section 4.3).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import RequestError
from seqrt.runtime.conversation import play
from seqrt.runtime.decoder import Decoder, StepOutput
from seqrt.runtime.drafters import Drafter, Proposal
from seqrt.runtime.drafters.build import LUD, for_draft
from seqrt.runtime.model import Model
from seqrt.runtime.options import DYNAMIC, NO_DRAFT, Options
from seqrt.runtime.probe import Recorder, Timeline
from seqrt.runtime.profiling.measure import measure
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.stream import Generation
from seqrt.runtime.tree import Path, Template, Tree
from seqrt.runtime.tuned import Choice, Machine, Tuning

ROWS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_SHOWN_RANKS: Final = 10
_STATIC: Final = "static"
_UNITS: Final = "units"

Costs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """A drafter's proposal at one place of an answer.

    Attributes:
        paths: of the proposed nodes but the root, in their order: the rank among its siblings at each level.
        right: those nodes that came true, from the root down.
    """

    paths: tuple[Path, ...]
    right: tuple[int, ...]

    @classmethod
    def of(cls, tree: Tree, following: Sequence[int]) -> "Place":
        """What was proposed, judged by the tokens that followed the root."""
        paths: list[Path] = [()]
        num_children = [0] * tree.num_nodes
        for parent in tree.parents[1:].tolist():
            paths.append((*paths[parent], num_children[parent]))
            num_children[parent] += 1
        right, node = [], 0
        for token in following:
            hit = next((child for child in tree.children(node) if tree.tokens[child] == token), None)
            if hit is None:
                break
            right.append(hit)
            node = hit
        return cls(tuple(paths[1:]), tuple(node - 1 for node in right))


@dataclass(slots=True)
class Recording:
    """What was seen.

    Attributes:
        answers: by drafter and answer, its places.
        step: by rows, seconds of steps.
        draft: by drafter and nodes, seconds of proposals.
        rest: seconds of a step beside the two.
        prompts: conversations answered.
        turns: steps timed.
    """

    answers: dict[str, list[list[Place]]]
    step: dict[int, list[float]] = field(default_factory=lambda: {rows: [] for rows in ROWS})
    draft: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    rest: list[float] = field(default_factory=list)
    prompts: int = 0
    turns: int = 0


class _Everyone:
    """Asks all drafters at every token, times a step of some other size, and drafts nothing itself."""

    name = "everyone"
    samples = False

    def __init__(self, drafters: Mapping[str, Drafter], decoder: Decoder, recording: Recording, most_rows: int) -> None:
        self.drafters, self.decoder, self.recording = drafters, decoder, recording
        self.sizes = [rows for rows in ROWS if rows <= most_rows]
        self.proposals: dict[str, list[Tree]] = {name: [] for name in drafters}

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        for drafter in self.drafters.values():
            drafter.begin(tokens, output)

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        size = self.sizes[self.recording.turns % len(self.sizes)]
        self.recording.turns += 1
        for name, drafter in self.drafters.items():
            if size > 1:
                start = perf_counter()
                drafter.propose(root, size)
                self.recording.draft[name].setdefault(size, []).append(perf_counter() - start)
            tree = drafter.propose(root, self.sizes[-1]).tree
            self.proposals[name].append(self._said(tree) if name == LUD else tree)
        if self.decoder.past_len + size <= self.decoder.capacity:
            tree = Tree.chain([root] * size)
            # Twice, because the first of a new size binds buffers; the loop mostly stays at one. Its rows are not kept.
            for _ in range(2):
                start = perf_counter()
                self.decoder.step(tree.tokens, tree.ancestors, tree.depth, np.arange(size))
                seconds = perf_counter() - start
            self.recording.step[size].append(seconds)
        return Proposal.nothing(root)

    def _said(self, pads: Tree) -> Tree:
        """What PADs behind the root say, as a chain of drafts."""
        root = pads.tokens[:1]
        if self.decoder.past_len + pads.num_nodes > self.decoder.capacity:
            return Tree.chain(root)
        output = self.decoder.step(pads.tokens, pads.ancestors, pads.depth, np.arange(pads.num_nodes))
        return Tree.chain(np.concatenate((root, output.topk_ids[1:, 0])))

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        for drafter in self.drafters.values():
            drafter.observe(proposal, path, tokens, output)


def record(model: Model, prompts: Sequence[Prompt], wanted: Sequence[Options], deadline: float) -> Recording:
    """Answers prompts without drafting until `deadline` (of perf_counter), one at least.

    Args:
        model: whose cache is used.
        prompts: to be answered, in this order.
        wanted: options of each drafter.
        deadline: no further prompt is begun after it.
    """
    drafters = {options.draft: drafter for options in wanted if (drafter := model.drafter(options)) is not None}
    found = Recording({name: [] for name in drafters}, draft={name: {} for name in drafters})
    recorder = Recorder()
    with model.attached(recorder):
        for prompt in prompts:
            model.forget()
            for stream in play(model, prompt, plain(wanted[0])):
                decoder = stream.loop.decoder
                most = min(wanted[0].max_rows or ROWS[-1], decoder.max_rows)
                stream.loop.drafter = every = _Everyone(drafters, decoder, found, most)
                _keep(found, every, stream.finish(), recorder.take())
            found.prompts += 1
            if perf_counter() > deadline:
                break
    return found


def _keep(found: Recording, every: _Everyone, answer: Generation, timeline: Timeline) -> None:
    tokens = answer.token_ids
    for name, trees in every.proposals.items():
        ahead = 2 if name == LUD else 1  # PADs skip the next token, which their own step decides
        places = [Place.of(tree, tokens[place + ahead :]) for place, tree in enumerate(trees[: len(tokens) - 1])]
        found.answers[name].append(places)
    found.rest += timeline.of_steps("sample").tolist()


def choose(name: str, found: Recording, costs: Costs, trees: Sequence[str | None]) -> Choice:
    """The fastest tree of a drafter.

    Args:
        name: the drafter.
        found: what was recorded.
        costs: seconds of a step with 1, 2, ... rows, drafting excepted.
        trees: kinds to choose from: "static", "dynamic", "units", or None for drafters without trees.
    """
    answers = found.answers[name]
    draft = _draft_costs(found.draft[name], len(costs))
    ranked = _ranked(answers, len(costs) - 1)
    learnt = max((len(place.paths) for places in answers for place in places), default=0)
    sizes = range(2, len(costs) + 1), range(3, min(2 * learnt + 1, len(costs)) + 1, 2)  # of units, 2 k - 1
    best: tuple[float, float, int, str | None] = (*replay(answers, 1, None, costs, draft), 1, None)
    for kind in trees:
        for rows in sizes[kind == _UNITS]:
            paths = frozenset(ranked[: rows - 1]) if kind == _STATIC else None
            if paths is not None and len(paths) < rows - 1:
                break
            if kind == _UNITS:
                speed, per_step = replay_units(answers, (rows + 1) // 2, costs, draft)
            else:
                speed, per_step = replay(answers, rows, paths, costs, draft)
            if speed > best[0]:
                best = (speed, per_step, rows, kind)
    speed, per_step, rows, kind = best
    tree = Template(tuple(ranked[: rows - 1])).text if kind == _STATIC else None if kind == _UNITS else kind
    return Choice(
        draft=name,
        tree=tree,
        rows=rows,
        draft_ms=round(1e3 * float(draft[rows - 1]), 4),
        acceptance=_acceptance(answers),
        tokens_per_step=round(per_step, 4),
        tokens_per_second=round(float(speed), 3),
    )


def _ranked(answers: Sequence[Sequence[Place]], most: int) -> list[Path]:
    """Paths from the one right most often, each behind its parent and all that take better ranks."""
    counts = Counter(place.paths[node] for places in answers for place in places for node in place.right)
    worth = Counter[Path]()
    for path, count in counts.most_common(most):
        for better in itertools.product(*(range(rank + 1) for rank in path)):
            for depth in range(1, len(path) + 1):
                worth[better[:depth]] = max(worth[better[:depth]], count)
    return sorted(worth, key=lambda path: (-worth[path], len(path), path))


def replay(
    answers: Sequence[Sequence[Place]], rows: int, paths: frozenset[Path] | None, costs: Costs, draft: Costs
) -> tuple[float, float]:
    """Decodes recorded answers with a tree: tokens per second and tokens per step.

    Args:
        answers: places of each.
        rows: nodes of a step; 1 decodes plainly.
        paths: the static tree; None takes the nodes that the drafter put first.
        costs: seconds of a step by its rows.
        draft: seconds of a proposal by its nodes.
    """
    seconds, tokens, steps = 0.0, 0, 0
    for places in answers:
        at = 0
        while at < len(places):
            place = places[at]
            nodes = min(rows - 1, len(place.paths))
            if paths is None:
                depth = sum(node < rows - 1 for node in place.right)
            else:
                depth = sum(place.paths[node] in paths for node in place.right)
            seconds += costs[nodes] + (draft[rows - 1] if rows > 1 else 0.0)
            at += 1 + depth
            steps += 1
        tokens += len(places)
    return (tokens / seconds, tokens / steps) if steps else (0.0, 1.0)


def replay_units(answers: Sequence[Sequence[Place]], lookahead: int, costs: Costs, draft: Costs) -> tuple[float, float]:
    """The same with lexical units of at most `lookahead` tokens: a step's last token and its PADs draft the next one.

    A place tells what PADs behind its token said of the tokens after the next. Where a draft was wrong the step's PADs
    stood behind it, and the next step has no drafts.
    """
    seconds, tokens, steps = 0.0, 0, 0
    for places in answers:
        at, said, right = 0, 0, 0
        while at < len(places):
            rows = said + lookahead
            seconds += costs[rows - 1] + draft[rows - 1]
            accepted = min(right, said)
            source = places[min(at + accepted, len(places) - 1)]
            pads = min(lookahead - 1, len(source.paths)) if accepted == said else 0
            at += 1 + accepted
            said, right = pads, len(source.right)
            steps += 1
        tokens += len(places)
    return (tokens / seconds, tokens / steps) if steps else (0.0, 1.0)


def tune(
    model: Model,
    prompts: Sequence[Prompt],
    wanted: Sequence[Options],
    threads: int,
    budget_seconds: float,
    advance: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Records, chooses for every drafter, and measures the choices.

    Args:
        model: the bundle.
        prompts: what to try on.
        wanted: options of each drafter, not plain decoding; all with the same `max_rows`.
        threads: the model's.
        budget_seconds: about what recording and measuring may take together.
        advance: told what is being done.

    Raises:
        RequestError: no answer is longer than a token.
    """
    start = perf_counter()
    advance("recording")
    found = record(model, prompts, wanted, start + 0.6 * budget_seconds)
    sizes = [rows for rows in ROWS if found.step[rows]]
    if not sizes:
        raise RequestError("the answers to these prompts end at once; give others with --prompts, or longer ones")
    medians = [float(np.median(found.step[rows])) for rows in sizes]
    step = np.minimum.accumulate(medians[::-1])[::-1].tolist()  # fewer rows cost no more; what adds to a time is noise
    rest = float(np.median(found.rest)) if found.rest else 0.0
    costs = np.interp(np.arange(1, sizes[-1] + 1), sizes, step) + rest
    choices = []
    for options in wanted:
        advance(f"choosing for {options.draft}")
        choices.append(choose(options.draft, found, costs, _kinds(options)))
    tuning = Tuning(
        machine=Machine.here(model.bundle, model.engines, threads),
        rows=tuple(sizes),
        step_ms=tuple(round(1e3 * seconds, 4) for seconds in step),
        choices=tuple(choices),
        prompts=found.prompts,
        positions=sum(map(len, next(iter(found.answers.values())))),
        plain_tokens_per_second=round(1 / float(costs[0]), 3),
    )
    advance("measuring")
    return _measured(model, prompts[: found.prompts], wanted, tuning, start + budget_seconds)


def _kinds(options: Options) -> tuple[str | None, ...]:
    """What recorded proposals can be cut to: where trees are dynamic, static ones of the same candidates too."""
    if options.draft == LUD:
        return (_UNITS,)
    if for_draft(replace(options, tree=DYNAMIC), options.draft).tree is None:
        return (None,)
    return (_STATIC, DYNAMIC) if options.tree == DYNAMIC else (_STATIC,)


def _measured(
    model: Model, prompts: Sequence[Prompt], wanted: Sequence[Options], tuning: Tuning, deadline: float
) -> Tuning:
    """The tuning with what its choices really do on the same prompts, as many as time allows, in turn."""
    pairs = zip(wanted, tuning.choices, strict=True)
    every = [plain(wanted[0]), *(chosen(options, choice) for options, choice in pairs if choice.rows > 1)]
    found = measure(model, prompts, every, enough=lambda: perf_counter() > deadline)
    speeds = {one.draft: round(one.tokens_per_second, 3) for one in found.rows}
    choices = [
        replace(choice, measured_tokens_per_second=speeds.get(choice.draft) or None) for choice in tuning.choices
    ]
    return replace(tuning, choices=tuple(choices), measured_plain_tokens_per_second=speeds[NO_DRAFT] or None)


def plain(options: Options) -> Options:
    """The same without drafting."""
    return replace(for_draft(options, NO_DRAFT), adaptive=False)


def chosen(options: Options, choice: Choice) -> Options:
    """The options with a choice in place, whatever the run-time measures."""
    return replace(options, tree=choice.tree, max_rows=choice.rows, adaptive=False)


def _draft_costs(seconds: Mapping[int, Sequence[float]], most: int) -> Costs:
    """Seconds of a proposal with 1, 2, ... nodes."""
    sizes = sorted(seconds)
    if not sizes:
        return np.zeros(most)
    costs: Costs = np.interp(np.arange(1, most + 1), sizes, [float(np.median(seconds[size])) for size in sizes])
    return costs


def _acceptance(answers: Sequence[Sequence[Place]]) -> tuple[tuple[float, ...], ...]:
    """By depth and rank: how often the candidate was right where its parent was."""
    asked, hits = Counter[int](), Counter[tuple[int, int]]()
    for places in answers:
        for place in places:
            parents = {(), *(place.paths[node] for node in place.right)}
            for depth in {len(path) for path in place.paths if path[:-1] in parents}:
                asked[depth] += 1
            for node in place.right:
                path = place.paths[node]
                hits[len(path), path[-1]] += 1
    ranks = 1 + max((rank for _, rank in hits), default=-1)
    return tuple(
        tuple(round(hits[depth, rank] / asked[depth], 4) for rank in range(min(ranks, _SHOWN_RANKS)))
        for depth in sorted(asked)
    )
