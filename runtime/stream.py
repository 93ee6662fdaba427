"""An answer on its way: tokens from the loop become text, stops and limits end it, and the result is reported."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from seqrt.runtime.generate import Loop, Trace
from seqrt.runtime.options import Options
from seqrt.runtime.text import Detokenizer, StopMatcher

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished answer.

    Attributes:
        text: the answer, without stop texts and special tokens.
        token_ids: its tokens, the one that ended it included.
        finish_reason: "stop" at an end token or stop text, "length" at a limit.
        draft: the drafter.
        steps: model calls after the prompt.
        tokens_per_step: tokens that one verification emits on average, those beyond an end or limit included;
            1.0 without drafting.
        seconds: load, prefill (to the first token) and decode.
        log_probabilities: of each token, if asked for.
        trace: what the loop did, step by step.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    new_tokens: int
    finish_reason: FinishReason
    draft: str
    steps: int
    tokens_per_step: float
    seconds: dict[str, float]
    tokens_per_second: float
    log_probabilities: list[float] | None
    trace: Trace = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """The JSON document of `seqrt run`."""
        names = ("text", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "draft", "steps")
        document = {name: getattr(self, name) for name in names}
        document |= {
            "tokens_per_step": round(self.tokens_per_step, 4),
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "tokens_per_second": round(self.tokens_per_second, 3),
        }
        if self.log_probabilities is not None:
            document["log_probabilities"] = [round(value, 6) for value in self.log_probabilities]
        return document


@dataclass(slots=True, kw_only=True)
class Stream:
    """Iterate once for the pieces of the text; afterwards `result` is the `Generation`.

    Leaving the iteration early ends the generation; `result` then covers what was decided so far.
    """

    loop: Loop
    tokens: Iterator[list[int]]
    tokenizer: "Tokenizer | None"
    options: Options
    stop_ids: frozenset[int]
    limit: int
    num_prompt: int
    load_seconds: float
    _token_ids: list[int] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _finish_reason: FinishReason = "length"

    def __iter__(self) -> Iterator[str]:
        try:
            for piece in self._pieces():
                if piece:
                    self._text.append(piece)
                    yield piece
        finally:
            close = getattr(self.tokens, "close", None)
            if close is not None:
                close()  # the model learns at once what is left in its cache
            self.loop.probe.end()

    def _pieces(self) -> Iterator[str]:
        """Text of each token as it becomes certain, up to an end token, a stop text or the limit."""
        stops = StopMatcher(self.options.stop)
        detokenizer = None if self.tokenizer is None else Detokenizer(self.tokenizer)
        for token in self._accepted():
            if token in self.stop_ids:
                self._finish_reason = "stop"
                break
            if detokenizer is not None:
                yield stops.feed(detokenizer.feed(token))
                if stops.stopped:
                    self._finish_reason = "stop"
                    return
        if detokenizer is not None:
            yield stops.feed(detokenizer.flush())
            if stops.stopped:
                self._finish_reason = "stop"
            yield stops.flush()

    def _accepted(self) -> Iterator[int]:
        """Tokens one by one up to the limit; what a step decided beyond the end is not part of the answer."""
        for tokens in self.tokens:
            self.loop.probe.stage("detokenise")
            for token in tokens:
                self._token_ids.append(token)
                yield token
                if len(self._token_ids) >= self.limit:
                    return

    def finish(self) -> Generation:
        """Runs to the end."""
        for _ in self:
            pass
        return self.result

    @property
    def result(self) -> Generation:
        """What was generated so far."""
        trace, new = self.loop.trace, len(self._token_ids)
        arrivals = trace.arrival_seconds[:new]
        decode = arrivals[-1] - trace.prefill_seconds if arrivals else 0.0
        log_probabilities = self.loop.log_probabilities
        return Generation(
            text="".join(self._text),
            token_ids=list(self._token_ids),
            prompt_tokens=self.num_prompt,
            new_tokens=new,
            finish_reason=self._finish_reason,
            draft=self.options.draft,
            steps=len(trace.rows),
            tokens_per_step=sum(trace.emitted) / len(trace.emitted) if trace.emitted else 1.0,
            seconds={"load": self.load_seconds, "prefill": trace.prefill_seconds, "decode": decode},
            tokens_per_second=(new - 1) / decode if decode > 0 else 0.0,
            log_probabilities=None if log_probabilities is None else log_probabilities[:new],
            trace=trace,
        )
