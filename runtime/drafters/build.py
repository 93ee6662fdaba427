"""Drafters by name: those that need nothing but text, and those of the draft heads in a bundle."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from seqrt.errors import BundleError, RequestError
from seqrt.runtime.bundle import Bundle, HeadInfo
from seqrt.runtime.drafters import Drafter
from seqrt.runtime.drafters.corpus import CorpusDrafter
from seqrt.runtime.drafters.hydra import HydraDrafter
from seqrt.runtime.drafters.lookup import LookupDrafter
from seqrt.runtime.drafters.lud import LudDrafter
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.drafters.recycling import RANKS, RecyclingDrafter
from seqrt.runtime.engines import Engine
from seqrt.runtime.options import DYNAMIC, MAX_ROWS, NO_DRAFT, PAPER, Options
from seqrt.runtime.tree import Template

_HEADS_TREE: Final = "mc_sim_7b_63"
_RECYCLING_TREE: Final = "token_recycling"
LUD: Final = "lud"


@dataclass(frozen=True, slots=True)
class Supplies:
    """What drafters are made from.

    Attributes:
        bundle: of the model.
        engines: the bundle's graphs by role.
        encode: text to tokens.
        options: of the request.
        tree: what drafts may combine (`Plan.tree`): a named tree, rank paths or "dynamic"; None for the drafter's own.
        branches: whether that may branch; else it is a chain.
    """

    bundle: Bundle
    engines: Mapping[str, Engine]
    encode: Callable[[str], list[int]]
    options: Options
    tree: str | None
    branches: bool

    def template(self, own: Template, num_heads: int, num_ranks: int) -> Template:
        """What drafts of so many levels and ranks may combine; whether they can is for the drafter to check.

        Without a tree it is `own`, or a chain as deep where that must not branch (`Model.branches`).

        Raises:
            RequestError: there is no such tree.
        """
        if self.tree is None:
            return own if self.branches else Template.chain(min(num_heads, own.max_depth))
        if self.tree == DYNAMIC:
            return Template.dynamic(num_heads, num_ranks, MAX_ROWS)
        return Template.resolve(self.tree)


def _lookup(supplies: Supplies) -> Drafter:
    return LookupDrafter()


def _recycling(supplies: Supplies) -> Drafter:
    own = Template.named(_RECYCLING_TREE)
    memory = supplies.options.memory
    template = supplies.template(own, own.max_depth, RANKS)
    vocab_size = supplies.bundle.manifest.decoder.vocab_size
    return RecyclingDrafter(vocab_size, template, None if memory is None else Path(memory))


def _corpus(supplies: Supplies) -> Drafter:
    if supplies.options.corpus is None:
        raise RequestError("--draft corpus needs a text to draft from; name one with --corpus FILE")
    path = Path(supplies.options.corpus)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--corpus {path} cannot be read: {error.strerror}; give a readable file") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--corpus {path} is not UTF-8 text (byte {error.start + 1}); give a text file") from error
    if not text.strip():
        raise RequestError(f"--corpus {path} is empty; give a file with text like the answers that are wanted")
    manifest, tokens = supplies.bundle.manifest, np.array(supplies.encode(text), np.int64)
    if tokens.max() >= manifest.decoder.vocab_size:
        raise RequestError(
            f"--corpus {path} has token {tokens.max()}, the model's are 0 to {manifest.decoder.vocab_size - 1};"
            " leave such special tokens out"
        )
    return CorpusDrafter(tokens, branches=supplies.branches)


def _lud(supplies: Supplies) -> Drafter:
    options, units = supplies.options, supplies.bundle.manifest.units
    assert units is not None, "the bundle offers it"
    if options.beta is not None and options.lud_mode != PAPER:
        raise RequestError(f"--beta {options.beta} is of use in paper mode only; add --lud-mode paper, or leave it out")
    beta = None if options.lud_mode != PAPER else options.beta or units.beta
    return LudDrafter(units.pad_token_id, options.lookahead or units.lookahead, beta)


def _medusa(supplies: Supplies, head: HeadInfo) -> Drafter:
    return MedusaDrafter(supplies.engines[head.graphs[0]], _of_heads(supplies, head))


def _hydra(supplies: Supplies, head: HeadInfo) -> Drafter:
    template = _of_heads(supplies, head)
    prefix = None if head.prefix is None else supplies.engines[head.prefix]
    heads = [supplies.engines[role] for role in head.graphs[: template.max_depth]]
    return HydraDrafter(heads, template, prefix, head.hidden_state_offset)


def _of_heads(supplies: Supplies, head: HeadInfo) -> Template:
    own = Template.parse(" ".join(head.tree)) if head.tree else Template.named(_HEADS_TREE)
    return supplies.template(own.limited(head.num_heads, head.top_k), head.num_heads, head.top_k)


# Options that only some drafters have a use for.
SPECIAL: Final = ("tree", "corpus", "memory", "lud_mode", "beta", "lookahead")
# Drafters that need no heads, with those of SPECIAL that they use. bundle.RESERVED_NAMES keeps heads off these names.
_HEADLESS: Final[Mapping[str, tuple[Callable[[Supplies], Drafter | None], tuple[str, ...]]]] = {
    NO_DRAFT: (lambda _: None, ()),
    "lookup": (_lookup, ()),
    "recycling": (_recycling, ("tree", "memory")),
    "corpus": (_corpus, ("corpus",)),
    LUD: (_lud, ("lud_mode", "beta", "lookahead")),
}
_OF_HEADS: Final[Mapping[str, Callable[[Supplies, HeadInfo], Drafter]]] = {"medusa": _medusa, "hydra": _hydra}


def draft_names(bundle: Bundle) -> tuple[str, ...]:
    """What `draft` takes with a bundle."""
    headless = (name for name in _HEADLESS if name != LUD or bundle.manifest.units is not None)
    return (*headless, *(head.name for head in bundle.manifest.heads))


def ready_names(bundle: Bundle) -> tuple[str, ...]:
    """Those of them that need nothing but the bundle."""
    return tuple(name for name in draft_names(bundle) if name != "corpus")


def for_draft(options: Options, name: str) -> Options:
    """The options for drafter `name`: those that are a matter of other drafters are left out."""
    unused = {option: None for option in SPECIAL if option not in _uses(name)}
    return dataclasses.replace(options, draft=name, **unused)  # type: ignore[arg-type]


def check_used(bundle: Bundle, options: Options, names: Sequence[str]) -> None:
    """Checks that one of the drafters `names` has a use for every option that only some have.

    Raises:
        RequestError: none has.
    """
    for option in SPECIAL:
        if getattr(options, option) is not None and not any(option in _uses(name) for name in names):
            users = " or ".join(user for user in draft_names(bundle) if option in _uses(user))
            flag = f"--{option.replace('_', '-')}"
            raise RequestError(f"{flag} is of no use to --draft {', '.join(names)}; choose --draft {users or LUD}")


def make_drafter(supplies: Supplies) -> Drafter | None:
    """The drafter that the options name, None for "none".

    Raises:
        RequestError: no such drafter, or an option that it cannot serve or has no use for.
        BundleError: heads of a kind that this version does not know.
    """
    bundle, options = supplies.bundle, supplies.options
    name, names = options.draft, draft_names(bundle)
    if name not in names:
        hint = ", or export with --lud" if name == LUD else ""
        raise RequestError(f"--draft {name} is not in this bundle; choose one of {', '.join(names)}{hint}")
    check_used(bundle, options, [name])
    try:
        if name in _HEADLESS:
            return _HEADLESS[name][0](supplies)
        head = next(head for head in bundle.manifest.heads if head.name == name)
        if head.kind in _OF_HEADS:
            return _OF_HEADS[head.kind](supplies, head)
    except RequestError as error:
        if options.tree is None or error.names_option:
            raise
        raise RequestError(f"--tree {options.tree!r:.60}: {error}") from error
    raise BundleError(
        f"{bundle.path} has draft heads {name} of kind {head.kind!r}, this seqrt knows {', '.join(_OF_HEADS)};"
        " upgrade seqrt or choose another --draft"
    )


def _uses(name: str) -> tuple[str, ...]:
    return _HEADLESS[name][1] if name in _HEADLESS else ("tree",)
