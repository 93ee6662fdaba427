"""A loaded bundle that answers: generate, stream, chat, score."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from seqrt.errors import BundleError, RequestError
from seqrt.runtime.backends import Engines
from seqrt.runtime.bundle import Bundle
from seqrt.runtime.chat import ChatTemplate, Message, check_messages
from seqrt.runtime.decoder import Decoder, Floats
from seqrt.runtime.drafters import Drafter, Learner
from seqrt.runtime.drafters.build import SPECIAL, Supplies, draft_names, make_drafter, ready_names
from seqrt.runtime.generate import Loop
from seqrt.runtime.loaded import Loaded, load_as
from seqrt.runtime.options import DYNAMIC, PAPER, Options
from seqrt.runtime.pacing import Pacer, StepCosts
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.score import Scores, score_tokens
from seqrt.runtime.settings import is_whole
from seqrt.runtime.stream import Generation, Stream
from seqrt.runtime.tree import Template
from seqrt.runtime.tuned import Machine, Plan, Tuning, read_tuning
from seqrt.runtime.verification import UNSEEN, Verifier

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNSETTLED: Final = 2  # steps in which an engine on a GPU sets itself up for a number of rows

Prompt = str | Sequence[int]


def load(path: str | Path, *, backend: str = "cpu", threads: int = 0, operators: bool = False) -> "Model":
    """Loads a bundle that generates text; arguments and errors are those of `seqrt.load`."""

    def make(bundle: Bundle, engines: Engines) -> Model:
        return Model(bundle, engines, *read_tuning(bundle, Machine.here(bundle, engines, threads)))

    return load_as(make, "generate", path, backend, threads, operators)


class Model(Loaded):
    """A loaded bundle that generates text. Not for several threads at once: there is one cache.

    Attributes:
        tuning: what `seqrt tune` found for it on this machine.
        tuning_note: why there is none although the bundle has a tune.json.
    """

    def __init__(
        self, bundle: Bundle, engines: Engines, tuning: Tuning | None = None, tuning_note: str | None = None
    ) -> None:
        super().__init__(bundle, engines)
        self.tuning, self.tuning_note = tuning, tuning_note
        self._info = bundle.manifest.decoder
        self._decoder = Decoder(
            self.engines["decoder"], partial(self.engines.__getitem__, "compaction"), bundle.manifest.capacity
        )
        if self._decoder.engine.buckets:
            self._decoder.warm_up()
        self._cached: list[int] = []  # tokens whose rows are in the cache
        self._drafters: dict[tuple[object, ...], Drafter | None] = {}
        self._pacers: dict[tuple[object, ...], Pacer] = {}
        # of this machine and model, whatever the drafter
        self._step_costs = StepCosts(unsettled=0 if engines.backend == "cpu" else _UNSETTLED)
        self._tokenizer = _tokenizer(bundle)
        template = bundle.text("chat_template.jinja")
        self._template = None if template is None else self._chat_template(template)

    @property
    def cache_bytes(self) -> int:
        """Of the decoder's caches as they are now; each of its runs reads all of them."""
        return self._decoder.cache_bytes

    @property
    def branches(self) -> bool:
        """Whether drafters' own trees may branch.

        With quantised weights on a CPU they are chains, whose rows have the bits of plain decoding
        (docs/decisions/0006-one-row.md); elsewhere no tree has them.
        """
        return self.backend != "cpu" or self.bundle.manifest.is_exact

    @property
    def drafts(self) -> tuple[str, ...]:
        """Names that `draft` takes."""
        return draft_names(self.bundle)

    @property
    def ready_drafts(self) -> tuple[str, ...]:
        """Those of them that need nothing but the bundle."""
        return ready_names(self.bundle)

    @property
    def tokenizer(self) -> "Tokenizer":
        """The bundle's tokenizer.

        Raises:
            RequestError: it has none; prompts must be token ids.
        """
        if self._tokenizer is None:
            raise RequestError(f"{self.bundle.path} has no tokenizer; give the prompt as token ids")
        return self._tokenizer

    def generate(self, prompt: Prompt, options: Options | None = None, **changes: Any) -> Generation:
        """Answers a prompt; see `stream`. Returns the finished `Generation`."""
        return self.stream(prompt, options, **changes).finish()

    def stream(self, prompt: Prompt, options: Options | None = None, **changes: Any) -> Stream:
        """Answers a prompt piece by piece: iterate for text, then read `.result`.

        Args:
            prompt: text, put through the chat template as a user's message unless `raw`; or token ids.
            options: what is asked for.
            **changes: fields of `Options` that differ from it, such as draft="medusa" or temperature=0.7.

        Raises:
            RequestError: the prompt or an option cannot be served.
        """
        wanted = dataclasses.replace(options or Options(), **changes)
        if isinstance(prompt, str) and self._template is not None and not wanted.raw:
            return self.stream_chat([{"role": "user", "content": prompt}], wanted)
        self.probe.stage("tokenise")
        return self._start(self.encode(prompt) if isinstance(prompt, str) else list(prompt), wanted)

    def chat(self, messages: Sequence[Message], options: Options | None = None, **changes: Any) -> Generation:
        """Answers a conversation; see `stream_chat`. Returns the finished `Generation`."""
        return self.stream_chat(messages, options, **changes).finish()

    def stream_chat(self, messages: Sequence[Message], options: Options | None = None, **changes: Any) -> Stream:
        """Answers a conversation; rows of earlier turns that are still in the cache are not computed again.

        Args:
            messages: `{"role": ..., "content": ...}` each, as the bundle's chat template takes them.
            options: what is asked for.
            **changes: fields of `Options` that differ from it.

        Raises:
            RequestError: no chat template, or the conversation or an option cannot be served.
        """
        self.probe.stage("tokenise")
        wanted = dataclasses.replace(options or Options(), **changes)
        if self._template is None:
            raise RequestError(f"{self.bundle.path} has no chat template; use --raw prompts")
        check_messages(messages)
        if not messages[-1]["content"].strip():
            raise RequestError("the prompt is empty; give some text")
        return self._start(self._rendered(self._template, messages), wanted)

    def score(self, text: Prompt) -> Scores:
        """Log-probability of each token of a text after the first, under the model.

        Raises:
            RequestError: fewer than two tokens, or more than the capacity.
        """
        self.require_open()
        tokens = self.encode(text) if isinstance(text, str) else list(text)
        self._check_prompt(tokens)
        if len(tokens) < 2:
            raise RequestError(f"scoring needs two tokens, the text has {len(tokens)}; give a longer one")
        self.forget()
        return score_tokens(self._decoder, self.engines["score"], tokens)

    def drafter(self, options: Options) -> Drafter | None:
        """The drafter that the options ask for, None for plain decoding; made when it is first asked for.

        Raises:
            RequestError: there is no such drafter, or it cannot serve them.
        """
        plan = self.plan(options)
        special = (getattr(options, name) for name in SPECIAL if name != "tree")
        key = (options.draft, plan.tree, *special)
        if key not in self._drafters:
            supplies = Supplies(self.bundle, self.engines, self.encode, options, plan.tree, self.branches)
            made = make_drafter(supplies)
            if options.tree not in (None, DYNAMIC):
                nodes = Template.resolve(options.tree).num_nodes
                if nodes > self._decoder.max_rows:
                    raise RequestError(f"--tree {options.tree!r:.60} has {nodes} nodes, {self._most_rows()}")
            self._drafters[key] = made
        if options.lookahead is not None and (rows := 2 * options.lookahead - 1) > plan.rows:
            hint = self._most_rows() if rows > self._decoder.max_rows else f"--max-rows allows {plan.rows}; give more"
            raise RequestError(f"--lookahead {options.lookahead} needs {rows} rows, {hint}")
        return self._drafters[key]

    def plan(self, options: Options) -> Plan:
        """The tree and the most nodes of a step that a request drafts with: what it says, else what was tuned."""
        most = self._decoder.max_rows
        if (options.max_rows or 0) > most:
            raise RequestError(f"--max-rows is {options.max_rows}, {self._most_rows()}")
        choice = None if self.tuning is None else self.tuning.choice(options.draft)
        plan = Plan.of(options, choice, exact=self.branches)
        return dataclasses.replace(plan, rows=min(plan.rows, most))

    def _most_rows(self) -> str:
        return f"a step takes {self._decoder.max_rows}" + (
            "; build with larger --buckets" if self._decoder.engine.buckets else "; give no more"
        )

    def save_memory(self, options: Options) -> None:
        """Writes what the drafter learnt to the file `options.memory`, if there is one.

        Raises:
            RequestError: the file cannot be written.
        """
        if options.memory is not None and isinstance(drafter := self.drafter(options), Learner):
            drafter.save(Path(options.memory))

    def forget(self, *, learnt: bool = False) -> None:
        """Empties the cache: the next answer computes its whole prompt, as the first one did.

        Args:
            learnt: drafters that learn from answer to answer begin anew too, with what `--memory` holds.
        """
        self._cached = []
        self._decoder.reset()
        if learnt:
            self._drafters = {key: each for key, each in self._drafters.items() if not isinstance(each, Learner)}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer itself adds."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids of a prompt as a request without `raw` has them: through the chat template, if there is one."""
        if self._template is None:
            return self.encode(text)
        return self._rendered(self._template, [{"role": "user", "content": text}])

    def _rendered(self, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = self.tokenizer.encode(template.render(messages), add_special_tokens=False).ids
        return ids

    def _start(self, prompt: list[int], options: Options) -> Stream:
        self.require_open()
        self._check_prompt(prompt)
        self._check_ids(options.stop_ids, "--stop-ids is")
        info = self._info
        eos = () if options.ignore_eos else info.eos_token_ids
        sampler = Sampler(options, info.vocab_size, eos_ids=info.eos_token_ids, min_new_tokens=options.min_new_tokens)
        drafter = self.drafter(options)
        verifier = Verifier(
            UNSEEN if options.lud_mode == PAPER else options.accept,
            sampler,
            samples_drafts=drafter is not None and drafter.samples,
            threshold=options.posterior_threshold,
            alpha=options.posterior_alpha,
        )
        loop = Loop(self._decoder, self._full_logits, sampler, verifier, drafter, self._pacer(options))
        loop.log_probabilities = [] if options.log_probabilities else None
        loop.probe = self.probe
        limit = min(options.max_new_tokens, self.bundle.manifest.capacity - len(prompt))
        return Stream(
            loop=loop,
            tokens=self._tokens(loop, prompt),
            tokenizer=self._tokenizer,
            options=options,
            stop_ids=frozenset((*eos, *options.stop_ids)),
            limit=limit,
            num_prompt=len(prompt),
            load_seconds=self.load_seconds,
        )

    def _tokens(self, loop: Loop, prompt: list[int]) -> Iterator[list[int]]:
        """Runs the loop over the cache, and keeps account of what is in the cache however it ends."""
        reused = self._reuse(prompt)
        cached = self._cached = list(prompt)  # a list of this answer's own: whoever comes next makes another
        try:
            for tokens in loop.run(prompt, reused):
                cached += tokens
                yield tokens
                if self._cached is not cached:
                    raise RequestError(
                        "another answer was begun before this one ended, and there is one cache;"
                        " finish one first, or load the bundle twice"
                    )
        finally:
            if self._cached is cached:
                del cached[self._decoder.past_len :]

    def _reuse(self, prompt: list[int]) -> int:
        """Goes back to the part of the cache that this prompt shares, one token less at least; returns its length."""
        most = min(len(self._cached), self._decoder.past_len, len(prompt) - 1)
        shared = next((i for i in range(most) if self._cached[i] != prompt[i]), most)
        self._decoder.reset(shared)
        return shared

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        capacity = self.bundle.manifest.capacity
        if not len(prompt):
            raise RequestError("the prompt is empty; give some text")
        if len(prompt) >= capacity:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, the bundle's capacity is {capacity} with the answer;"
                " shorten it or export with a larger --capacity"
            )
        self._check_ids(prompt, "the prompt has token")

    def _check_ids(self, tokens: Iterable[int], begin: str) -> None:
        """Raises RequestError, with a message that begins so, unless all are tokens of the vocabulary."""
        for token in tokens:
            if not is_whole(token) or not 0 <= token < self._info.vocab_size:
                shown = int(token) if is_whole(token) else repr(token)  # not np.int64(7)
                raise RequestError(f"{begin} {shown}; ids are whole numbers from 0 to {self._info.vocab_size - 1}")

    def _full_logits(self, hidden: Floats) -> Floats:
        engine = self.engines["logits"]
        engine.input("hidden", hidden.shape)[:] = hidden
        logits: Floats = engine.output("logits", (len(hidden), self._info.vocab_size))
        engine.run()
        return logits

    def _pacer(self, options: Options) -> Pacer:
        plan = self.plan(options)
        key = (options.draft, plan.tree, plan.rows, options.paced, options.lookahead)
        if key not in self._pacers:
            relative = () if self.tuning is None else self.tuning.relative
            buckets = tuple(self._decoder.engine.buckets)
            self._pacers[key] = Pacer(plan.rows, options.paced, self._step_costs, relative, buckets)
        return self._pacers[key]

    def _chat_template(self, source: str) -> ChatTemplate:
        """The bundle's template, with the texts of the begin and end tokens, which templates may name."""
        info = self._info
        ids = (info.bos_token_id, info.eos_token_ids[0] if info.eos_token_ids else None)
        bos, eos = (
            "" if token is None or self._tokenizer is None else self._tokenizer.id_to_token(token) or ""
            for token in ids
        )
        return ChatTemplate(source, bos_token=bos, eos_token=eos)


def _tokenizer(bundle: Bundle) -> "Tokenizer | None":
    text = bundle.text("tokenizer.json")
    if text is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise BundleError(
            f"{bundle.path / 'tokenizer.json'} cannot be read ({error}); upgrade tokenizers or export again"
        ) from error
    tokenizer.no_truncation()  # training settings that some files keep: they would cut prompts silently
    tokenizer.no_padding()
    return tokenizer
