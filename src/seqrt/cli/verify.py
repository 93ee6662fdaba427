"""`seqrt verify`: that drafting changes nothing."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Drafts, Json, PromptFile, Threads, command
from seqrt.cli.console import FAILURE, emit, fail, print_table, progress
from seqrt.cli.session import drafted, open_model, prompts_of
from seqrt.errors import RequestError
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt

if TYPE_CHECKING:
    from seqrt.runtime.lossless import Divergence
    from seqrt.runtime.model import Model

_LEFT_OUT: Final = (
    *(
        "draft",
        "accept",
        "posterior_threshold",
        "posterior_alpha",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seed",
    ),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram", "logit_bias"),
    *("min_new_tokens", "log_probabilities", "lud_mode", "beta"),
)


@dataclass(slots=True)
class Tally:
    """How the answers with one drafter compare with the plain ones."""

    draft: str
    prompts: int = 0
    tokens: int = 0
    mismatches: int = 0
    ties: int = 0
    first_mismatch: dict[str, object] | None = None

    def add(self, prompt: Prompt, turn: int, found: "Divergence") -> None:
        """Counts a prompt whose answers differ."""
        if found.is_tie:
            self.ties += 1
            return
        self.mismatches += 1
        if self.first_mismatch is None:
            where = {"draft": self.draft, "prompt": prompt.id, "turn": turn}
            self.first_mismatch = where | dataclasses.asdict(found)


@command("seqrt verify smollm2 --draft lookup --draft medusa", without=_LEFT_OUT, defaults={"max_new_tokens": 64})
def verify(
    bundle: BundlePath,
    options: Options,
    prompts: PromptFile = None,
    draft: Drafts = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Check that drafting changes no answer.

    Greedy answers with and without drafting are compared; the exit code is 1 when one differs. A prompt
    counts as a tie when, at the first token that differs, the plain run's best two log-probabilities lie
    within 0.001.
    """
    if draft and set(draft) == {"none"}:
        raise RequestError("--draft none leaves nothing to compare; name a drafter")
    asked = prompts_of(prompts)
    model = open_model(bundle, backend, threads)
    plain, *others = drafted(model, draft, options)
    with progress("verifying", len(asked)) as advance:
        tallies = _compare(model, asked, plain, others, advance)
    _report(tallies, len(asked), as_json=as_json)
    if wrong := sum(tally.mismatches for tally in tallies):
        fail(f"{wrong} of {sum(tally.prompts for tally in tallies)} answers differ from plain decoding")
        raise typer.Exit(FAILURE)


def _compare(
    model: "Model",
    prompts: Sequence[Prompt],
    plain: Options,
    others: Sequence[Options],
    advance: Callable[[], None],
) -> list[Tally]:
    tallies = {options.draft: Tally(options.draft) for options in others}
    plain = dataclasses.replace(plain, log_probabilities=True)
    for prompt in prompts:
        _judge(model, prompt, plain, others, tallies)
        advance()
    return list(tallies.values())


def _judge(
    model: "Model", prompt: Prompt, plain: Options, others: Sequence[Options], tallies: dict[str, Tally]
) -> None:
    """Plays a prompt's turns, each drafter up to its first divergence; all turns follow the plain answers."""
    from seqrt.runtime.conversation import Conversation
    from seqrt.runtime.lossless import divergence

    conversation, open_ones = Conversation(prompt.messages), list(others)
    for options in others:
        tallies[options.draft].prompts += 1
    for turn, text in enumerate(prompt.turns or (None,)):
        if text is not None:
            conversation.ask(text)
        model.forget()  # what a drafted run may have spoilt in the cache must not spoil the judge
        expected = conversation.stream(model, plain).finish()
        for options in list(open_ones):
            found = divergence(expected, conversation.stream(model, options).finish())
            tally = tallies[options.draft]
            tally.tokens += expected.new_tokens if found is None else found.position
            if found is not None:
                tally.add(prompt, turn, found)
                open_ones.remove(options)
        if not open_ones:
            return
        conversation.answer(expected.text)


def _report(tallies: Sequence[Tally], num_prompts: int, *, as_json: bool) -> None:
    firsts = [tally.first_mismatch for tally in tallies if tally.first_mismatch is not None]
    if as_json:
        total = {name: sum(getattr(tally, name) for tally in tallies) for name in ("tokens", "mismatches", "ties")}
        rate = total["mismatches"] / max(sum(tally.prompts for tally in tallies), 1)
        rows = [dataclasses.asdict(tally) for tally in tallies]
        emit(
            {"prompts": num_prompts}
            | total
            | {"rate": rate, "first_mismatch": firsts[0] if firsts else None, "rows": rows}
        )
        return
    print_table(
        ("draft", "prompts", "tokens", "mismatches", "rate", "ties"),
        [
            (
                tally.draft,
                *(str(count) for count in (tally.prompts, tally.tokens, tally.mismatches)),
                f"{tally.mismatches / max(tally.prompts, 1):.2%}",
                str(tally.ties),
            )
            for tally in tallies
        ],
    )
    for first in firsts:
        margin = "none" if first["margin"] is None else f"{first['margin']:.4f}"
        shown = first | {"margin": margin}
        print("first mismatch: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
