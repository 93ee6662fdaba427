"""Plays prompts with one drafter after the other, and keeps where the time of every answer went.

A round of warm-up is not counted: it fills caches and lets the loop learn what steps cost. Then each prompt is played
with all drafters before the next one, another one first each time, so that a busy moment of the machine meets all of
them. A conversation starts with an empty cache; later turns reuse what the earlier ones left, as in a chat.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

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
    def rows(self) -> list[int]:
        """Rows of each step."""
        return [rows for answer in self.answers for rows in answer.generation.trace.rows]

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one verification emits, 1.0 without drafting; those beyond an end or limit are included."""
        emitted = [count for answer in self.answers for count in answer.generation.trace.emitted]
        return sum(emitted) / len(emitted) if emitted else 1.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For depth 1, 2, ...: of the steps whose tree was that deep, the share that accepted that deep."""
        accepted = [pair for answer in self.answers for pair in answer.generation.trace.accepted_depth]
        rates = []
        for level in range(1, max((depth for depth, _ in accepted), default=0) + 1):
            reached = [got >= level for depth, got in accepted if depth >= level]
            rates.append(sum(reached) / len(reached))
        return rates


@dataclass(slots=True)
class Measured:
    """One `Measurement` a drafter, of the same prompts; and whether these are all that were asked for."""

    rows: list[Measurement]
    is_complete: bool = False


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

    An interrupt ends it: what was measured of all of `wanted` is kept.

    Args:
        model: what answers.
        prompts: to be played in this order.
        wanted: options of each drafter.
        repeat: so often all prompts are played.
        warm_up: so many prompts are played before, and not counted.
        before: called before each prompt.
        advance: called after each conversation that counts.
        enough: no further prompt is played once it says so.

    Returns:
        Rows in the order of `wanted`.
    """
    found, recorder = Measured([Measurement(options.draft) for options in wanted]), Recorder(nvtx_ranges())
    names = _names(prompts)
    try:
        with model.attached(recorder):
            for prompt in prompts[:warm_up]:
                for options in wanted:
                    _play(model, recorder, prompt, options)
            for round_ in range(repeat):
                model.forget(learnt=True)  # else a drafter would know the answers
                for number, prompt in enumerate(prompts):
                    before()
                    answers: dict[int, list[Answer]] = {}
                    for place in _rotated(len(wanted), number):
                        played = _play(model, recorder, prompt, wanted[place])
                        answers[place] = [replace(one, prompt=names[number], repeat=round_) for one in played]
                        advance()
                    for place, row in enumerate(found.rows):  # all or none, so that they have the same prompts
                        row.answers += answers[place]
                    if enough():
                        return found
        found.is_complete = True
    except KeyboardInterrupt:
        if not found.rows[0].answers:
            raise
    return found


def joined(arrays: Iterable[Seconds]) -> Seconds:
    """One array of several, empty of none."""
    return np.concatenate([np.empty(0), *arrays])


def _rotated(count: int, by: int) -> list[int]:
    return [(place + by) % count for place in range(count)]


def _names(prompts: Sequence[Prompt]) -> list[str]:
    """Their ids, or their numbers where two have the same."""
    ids = [prompt.id for prompt in prompts]
    return ids if len(set(ids)) == len(ids) else [str(number) for number in range(1, len(ids) + 1)]


def _play(model: Model, recorder: Recorder, prompt: Prompt, options: Options) -> list[Answer]:
    """The answers of a conversation."""
    model.forget()
    recorder.clear()
    answers = []
    for turn, stream in enumerate(play(model, prompt, options)):
        generation = stream.finish()
        answers.append(Answer(prompt.id, turn, 0, generation, recorder.take(), model.cache_bytes))
    return answers
