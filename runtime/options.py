"""Everything that can be asked of a generation, with its defaults and checks."""

from dataclasses import dataclass
from typing import Final

from seqrt.errors import RequestError
from seqrt.runtime.settings import Sampling, is_whole, require
from seqrt.runtime.verification import POSTERIOR_ALPHA, POSTERIOR_THRESHOLD, RULES

NO_DRAFT: Final = "none"
DYNAMIC: Final = "dynamic"  # the tree whose shape the drafter's own probabilities make
DEFAULT_NEW_TOKENS: Final = 256
VERIFY, PAPER = "verify", "paper"  # modes of lexical units
MAX_ROWS: Final = 64  # of a tree, unless asked for more or less


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Sampling):
    """Sampling rules, limits, stops and drafting of one request. The defaults are plain greedy decoding.

    Attributes:
        max_new_tokens: most tokens of the answer; the bundle's capacity may end it earlier.
        min_new_tokens: the end-of-text tokens are banned before so many.
        stop: texts that end the answer; they are not part of it.
        stop_ids: tokens that end the answer, besides the model's own.
        ignore_eos: do not end at the model's own end-of-text tokens.
        draft: drafter: "none", a train-free one such as "lookup", or the name of draft heads in the bundle.
        tree: what drafts of heads may combine: a named tree, rank paths such as "0 00 1", or "dynamic", which is shaped
            by the heads' probabilities at each step; None takes the heads' own.
        corpus: text file that the drafter "corpus" drafts from.
        memory: file in which the drafter "recycling" keeps what it learnt: read here, written by `Model.save_memory`.
        lud_mode: of the drafter "lud": "verify" (None is that) or "paper", which takes what it is confident of unseen.
        beta: confidence above which the paper's mode takes a token; None for the bundle's.
        lookahead: most tokens of a lexical unit k; None for what the model learnt or, unless adaptive, was tuned to.
        max_rows: most nodes of a tree, the root included; None for MAX_ROWS or, unless adaptive, what was tuned.
        adaptive: verify only as many nodes as pay; False verifies the whole tree at each step.
        accept: verification rule; None takes the lossless one that fits.
        posterior_threshold, posterior_alpha: of the rule "typical".
        raw: a text prompt is taken as it is, without the chat template.
        log_probabilities: report that of each token.

    Raises:
        RequestError: a value is out of its range; the message names the option.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    draft: str = NO_DRAFT
    tree: str | None = None
    corpus: str | None = None
    memory: str | None = None
    lud_mode: str | None = None
    beta: float | None = None
    lookahead: int | None = None
    max_rows: int | None = None
    adaptive: bool = True
    accept: str | None = None
    posterior_threshold: float = POSTERIOR_THRESHOLD
    posterior_alpha: float = POSTERIOR_ALPHA
    raw: bool = False
    log_probabilities: bool = False

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)  # super() does not work in a slotted dataclass
        least_of = {"max_new_tokens": 1, "min_new_tokens": 0, "max_rows": 1, "lookahead": 2}
        for name, least in least_of.items():
            value = getattr(self, name)
            if name in ("max_rows", "lookahead") and value is None:
                continue
            require(is_whole(value), name, value, "a whole number")
            require(value >= least, name, value, f"{least} or more")
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"--min-new-tokens is {self.min_new_tokens}, above --max-new-tokens, {self.max_new_tokens}; raise that"
            )
        for name in ("posterior_threshold", "posterior_alpha"):
            value = getattr(self, name)
            require(0 < value <= 1, name, value, "more than 0 and at most 1")
        if self.accept is not None and self.accept not in RULES:
            raise RequestError(f"--accept is {self.accept!r}; choose one of {', '.join(RULES)}")
        self._check_units()
        require(not isinstance(self.stop, str), "stop", repr(self.stop), "a tuple of texts, of one too")
        if "" in self.stop:
            raise RequestError("--stop is empty; give the text to stop at")

    @property
    def paced(self) -> bool:
        """Whether measured times decide how much is verified; in paper mode they would decide what is said."""
        return self.adaptive and self.lud_mode != PAPER

    def _check_units(self) -> None:
        if self.beta is not None:
            require(0 < self.beta <= 1, "beta", self.beta, "more than 0 and at most 1")
        if self.lud_mode not in (None, VERIFY, PAPER):
            raise RequestError(f"--lud-mode is {self.lud_mode!r}; choose {VERIFY} or {PAPER}")
        if self.lud_mode != PAPER:
            return
        if self.accept is not None:
            raise RequestError(f"--accept {self.accept} verifies, --lud-mode paper does not; leave one of them out")
        if not self.plain_order or self.min_new_tokens:
            raise RequestError(
                "--lud-mode paper takes tokens unseen, whatever penalties, biases and --min-new-tokens say;"
                " leave these out or use --lud-mode verify"
            )
