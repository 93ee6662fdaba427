"""Plays prompts with one drafter after the other, and keeps where the time of every answer went.

A round of warm-up is not counted: it fills caches and lets the loop learn what steps cost. Then each prompt is played
with all drafters before the next one, another one first each time, so that a busy moment of the machine meets all of
them. A conversation starts with an empty cache; later turns reuse what the earlier ones left, as in a chat.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from seqrt.errors import SeqrtError
from seqrt.runtime.conversation import play
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.probe import Recorder, Seconds, Timeline, nvtx_ranges
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.stream import Generation

FIRST_TOKEN: Final = "detokenise"  # the stage that begins when the first token has been decided


@dataclass(frozen=True)
class Answer:
    """One answer as it was measured.

    Attributes:
        prompt: its id.
        turn, repeat: which of the conversation, from 0; which time that the prompt was played, from 0.
        cache_bytes: caches as large as they were at its end; every run of the decoder reads them.
    """

    prompt: str
    turn: int
    repeat: int
    generation: Generation
    timeline: Timeline
    cache_bytes: int

    @property
    def decoded(self) -> int:
        """Tokens after the first, which comes with the prompt."""
        return self.generation.new_tokens - 1

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.generation.seconds["decode"]

    @property
    def ttft_ms(self) -> float:
        """From the request, template and tokenizer included, to the first token."""
        return 1e3 * (self.timeline.until(FIRST_TOKEN) or 0.0)

    @property
    def text(self) -> str:
        """Its tokens in short: the same for the same ones."""
        return hashlib.sha256(repr(self.generation.token_ids).encode()).hexdigest()[:12]

    @cached_property
    def itl_ms(self) -> Seconds:
        """Of each further token, since the one before; tokens of one step come together."""
        arrivals = self.generation.trace.arrival_seconds[: self.generation.new_tokens]
        return 1e3 * np.diff(np.asarray(arrivals, np.float64))


@dataclass(slots=True)
class Measurement:
    """All answers of one drafter."""

    draft: str
    answers: list[Answer] = field(default_factory=list)

    @property
    def timelines(self) -> list[Timeline]:
        """Of each answer."""
        return [answer.timeline for answer in self.answers]

    @property
    def new_tokens(self) -> int:
        """Of all answers."""
        return sum(answer.generation.new_tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """While decoding: the first token of an answer comes with the prompt."""
        seconds = sum(answer.decode_seconds for answer in self.answers)
        return sum(answer.decoded for answer in self.answers) / seconds if seconds else 0.0

    @property
    def step_ms(self) -> Seconds:
        """Of each step, from its beginning to the next one's."""
        return 1e3 * joined(timeline.of_steps() for timeline in self.timelines)

    @property
    def answer_tokens_per_step(self) -> float | None:
        """Tokens of answers after the first that a step brings on average; None without steps."""
        steps = len(self.rows)
        return sum(answer.decoded for answer in self.answers) / steps if steps else None

    @property
    def rows(self) -> list[int]:
        """Rows of each step."""
        return [rows for answer in self.answers for rows in answer.generation.trace.rows]

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one verification emits, 1.0 without drafting; those beyond an end or limit are included."""
        emitted = [count for answer in self.answers for count in answer.generation.trace.emitted]
        return sum(emitted) / len(emitted) if emitted else 1.0

    @property
    def drafted_by_depth(self) -> list[int]:
        """For depth 1, 2, ...: steps whose tree was that deep."""
        depths = [depth for depth, _ in self._accepted]
        return [sum(depth >= level for depth in depths) for level in range(1, max(depths, default=0) + 1)]

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For depth 1, 2, ...: of the steps whose tree was that deep, the share that accepted that deep."""
        reached = enumerate(self.drafted_by_depth, start=1)
        return [
            sum(got >= level for depth, got in self._accepted if depth >= level) / steps for level, steps in reached
        ]

    @property
    def drafted_tokens(self) -> int:
        """Drafts that were verified."""
        return sum(answer.generation.trace.drafted for answer in self.answers)

    @property
    def accepted_tokens(self) -> int:
        """Drafts that were taken."""
        return sum(got for _, got in self._accepted)

    @property
    def _accepted(self) -> list[tuple[int, int]]:
        return [pair for answer in self.answers for pair in answer.generation.trace.accepted_depth]


@dataclass(slots=True)
class Measured:
    """Answers to the same prompts by all drafters.

    Attributes:
        drafts: in their order.
        conversations: by drafter, each as it was played; all drafters have played each.
        stopped_by: what ended the measurement early, an interrupt or a failure; None if it is complete.
    """

    drafts: Sequence[str]
    conversations: list[list[list[Answer]]] = field(default_factory=list)
    stopped_by: BaseException | None = None

    @property
    def rows(self) -> list[Measurement]:
        """One a drafter."""
        return [
            Measurement(draft, [answer for played in self.conversations for answer in played[place]])
            for place, draft in enumerate(self.drafts)
        ]


def measure(
    model: Model,
    prompts: Sequence[Prompt],
    wanted: Sequence[Options],
    *,
    repeat: int = 1,
    warm_up: int = 1,
    before: Callable[[], None] = lambda: None,
    advance: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> Measured:
    """Plays every prompt with every one of `wanted`.

    An interrupt or a failure, of a prompt that does not fit for instance, ends it: what all of `wanted` played is kept.

    Args:
        model: what answers.
        prompts: to be played in this order.
        wanted: options of each drafter.
        repeat: so often all prompts are played.
        warm_up: so many prompts are played before, and not counted.
        before: called before each prompt.
        advance: called after each conversation that counts.
        enough: no further prompt is played once it says so.

    Raises:
        KeyboardInterrupt, SeqrtError: before all of `wanted` had played a prompt.
    """
    found, recorder = Measured([options.draft for options in wanted]), Recorder(nvtx_ranges())
    try:
        with model.attached(recorder):
            for prompt in prompts[:warm_up]:
                for options in wanted:
                    _play(model, recorder, prompt, options)
            for played in _rounds(model, recorder, prompts, wanted, repeat, before, advance):
                found.conversations.append(played)
                if enough():
                    break
    except (KeyboardInterrupt, SeqrtError) as error:  # what was measured so far is not lost
        if not found.conversations:
            raise
        found.stopped_by = error
    return found


def _rounds(
    model: Model,
    recorder: Recorder,
    prompts: Sequence[Prompt],
    wanted: Sequence[Options],
    repeat: int,
    before: Callable[[], None],
    advance: Callable[[], None],
) -> Iterator[list[list[Answer]]]:
    """By drafter, the answers of one conversation after the other."""
    names = _names(prompts)
    for round_ in range(repeat):
        model.forget(learnt=True)  # else a drafter would know the answers
        for number, prompt in enumerate(prompts):
            before()
            answers: dict[int, list[Answer]] = {}
            for place in rotated(len(wanted), number + round_):
                answers[place] = _play(model, recorder, prompt, wanted[place], names[number], round_)
                advance()
            yield [answers[place] for place in range(len(wanted))]


def joined(arrays: Iterable[Seconds]) -> Seconds:
    """One array of several, empty of none."""
    return np.concatenate([np.empty(0), *arrays])


def rotated(count: int, by: int) -> list[int]:
    """The places of so many, another one first each time."""
    return [(place + by) % count for place in range(count)]


def _names(prompts: Sequence[Prompt]) -> list[str]:
    """Their ids, or their numbers where two have the same."""
    ids = [prompt.id for prompt in prompts]
    return ids if len(set(ids)) == len(ids) else [str(number) for number in range(1, len(ids) + 1)]


def _play(
    model: Model, recorder: Recorder, prompt: Prompt, options: Options, name: str = "", repeat: int = 0
) -> list[Answer]:
    """The answers of a conversation."""
    model.forget()
    recorder.clear()
    answers = []
    for turn, stream in enumerate(play(model, prompt, options)):
        generation = stream.finish()
        answers.append(Answer(name, turn, repeat, generation, recorder.take(), model.cache_bytes))
    return answers
