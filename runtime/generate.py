"""The decoding loop: draft, verify, accept, commit. Plain decoding is the same loop with a tree of one node."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import numpy as np

from seqrt.runtime.decoder import Decoder, Floats, StepOutput
from seqrt.runtime.drafters import Drafter, Proposal
from seqrt.runtime.history import History
from seqrt.runtime.pacing import Pacer
from seqrt.runtime.probe import OFF, Probe
from seqrt.runtime.rows import Rows
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.tree import Tree
from seqrt.runtime.verification import Verifier

# Of a step, in this order; "accept" judges drafts and "sample" chooses a token where there are none.
STEP_STAGES: Final = ("draft", "verify", "accept", "sample", "commit", "detokenise")
REQUEST_STAGES: Final = ("tokenise", "prefill")  # before the first

FullLogits = Callable[[Floats], Floats]


@dataclass(slots=True)
class Trace:
    """What a run of the loop did, for reports.

    Attributes:
        prefill_seconds: from the prompt to the first token.
        computed: tokens of the prompt that were not in the cache.
        rows, emitted: of each step, nodes verified and tokens decided.
        drafted: drafts in all.
        accepted_depth: of each step with drafts, depth of the tree and of the accepted path.
        arrival_seconds: of each token, when it was decided, counted from the start.
        margins: of each token, best logit less second best; only with log-probabilities.
    """

    prefill_seconds: float = 0.0
    computed: int = 0
    rows: list[int] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted_depth: list[tuple[int, int]] = field(default_factory=list)
    arrival_seconds: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Loop:
    """One request on one decoder.

    Attributes:
        decoder: holds the cache; `reused` of the prompt's tokens are in it already.
        full_logits: hidden rows `[R, H]` to logits `[R, V]`, for what the top candidates do not decide.
        log_probabilities: filled with that of each decided token, if given.
        probe: is told of each stage.
    """

    decoder: Decoder
    full_logits: FullLogits
    sampler: Sampler
    verifier: Verifier
    drafter: Drafter | None
    pacer: Pacer
    trace: Trace = field(default_factory=Trace)
    log_probabilities: list[float] | None = None
    probe: Probe = OFF

    def run(self, prompt: Sequence[int], reused: int = 0) -> Iterator[list[int]]:
        """Yields the tokens that each model call decides, without end; the caller stops when it has enough."""
        start, probe = perf_counter(), self.probe
        probe.stage("prefill")
        self.pacer.begin()
        history = self.sampler.history(prompt)
        self.trace.computed = len(prompt) - reused
        chunks = self.decoder.prefill(prompt[reused:])
        output = chunks[-1]
        probe.stage("sample")
        rows = self._rows(output, last_row_only=True)
        root = self.sampler.choose(rows, 0, history)
        self._note(rows, [0], [root])
        history.append(root)
        if self.drafter is not None:
            probe.stage("draft")
            self.drafter.begin(history.tokens, StepOutput.of_prompt(chunks))
        self.trace.prefill_seconds = perf_counter() - start
        self.trace.arrival_seconds.append(self.trace.prefill_seconds)
        yield [root]
        while True:
            tokens = self._step(history)
            self.trace.arrival_seconds += [perf_counter() - start] * len(tokens)
            yield tokens

    def _step(self, history: History) -> list[int]:
        """Drafts a tree under the last token, verifies it in one call and keeps the accepted path."""
        begin, probe = perf_counter(), self.probe
        probe.step("draft")
        proposal, drafted = self._draft(history.tokens[-1])
        probe.stage("verify")
        tree, start = proposal.tree, perf_counter()
        output = self.decoder.step(tree.tokens, tree.ancestors, tree.depth, np.arange(tree.num_nodes))
        seconds = perf_counter() - start
        probe.stage("accept" if tree.num_nodes > 1 else "sample")
        rows = self._rows(output)
        accepted = self.verifier.accept(tree, rows, history, proposal.drawn)
        tokens = [*tree.tokens[accepted.path[1:]].tolist(), accepted.next_token]
        self._note(rows, accepted.path, tokens)
        for token in tokens:
            history.append(token)
        probe.stage("commit")
        self.decoder.commit(accepted.path)
        if self.drafter is not None:
            self.drafter.observe(proposal, accepted.path, tokens, output)
        self.pacer.record(tree.num_nodes, len(tokens), seconds, perf_counter() - begin, drafted=drafted)
        self.trace.rows.append(tree.num_nodes)
        self.trace.emitted.append(len(tokens))
        if tree.num_nodes > 1:
            self._trace_drafts(tree, accepted.path)
        return tokens

    def _trace_drafts(self, tree: Tree, path: Sequence[int]) -> None:
        depths = tree.depth[1:][tree.tokens[1:] < self.sampler.vocab_size]  # PADs guess nothing
        if depths.size:
            self.trace.drafted += depths.size
            self.trace.accepted_depth.append((int(depths.max()), len(path) - 1))

    def _draft(self, root: int) -> tuple[Proposal, bool]:
        """What to verify next, and whether the drafter was asked."""
        # Towards the capacity the tree shrinks to the root: the model may have no positions beyond.
        room = min(self.decoder.capacity - self.decoder.past_len, self.decoder.max_rows)
        if self.drafter is None or room < 2 or not self.pacer.drafts():
            return Proposal.nothing(root), False
        pacer = self.pacer
        proposal = self.drafter.propose(root, min(pacer.max_rows, room), pacer.rate, pacer.prices)
        count = pacer.choose(proposal.probability)
        return proposal.truncated(count), True

    def _rows(self, output: StepOutput, *, last_row_only: bool = False) -> Rows:
        def full(node: int) -> Floats:
            row = len(output.hidden) - 1 if last_row_only else node
            logits: Floats = self.full_logits(output.hidden[row : row + 1])[0]
            return logits

        return Rows(output.topk_ids, output.topk_logits, output.logsumexp, full)

    def _note(self, rows: Rows, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Log-probability of each token under the model itself, before penalties and temperature."""
        if self.log_probabilities is None:
            return
        for node, token in zip(path, tokens, strict=True):
            place = np.flatnonzero(rows.ids[node] == token)
            logit = rows.logits[node, place[0]] if len(place) else rows.full(node)[token]
            self.log_probabilities.append(float(logit - rows.logsumexp[node]))
            self.trace.margins.append(float(rows.logits[node, 0] - rows.logits[node, 1]))
