"""Drafters by name: those that need nothing but text, and those of the draft heads in a bundle."""

import dataclasses
from collections.abc import Callable, Mapping
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
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.drafters.recycling import RANKS, RecyclingDrafter
from seqrt.runtime.engines import Engine
from seqrt.runtime.options import DYNAMIC, NO_DRAFT, Options
from seqrt.runtime.tree import Template
from seqrt.runtime.tuned import Choice

_DYNAMIC_NODES: Final = 64
_HEADS_TREE: Final = "mc_sim_7b_63"
_RECYCLING_TREE: Final = "token_recycling"


@dataclass(frozen=True, slots=True)
class Supplies:
    """What drafters are made from.

    Attributes:
        bundle: of the model.
        engines: the bundle's graphs by role.
        encode: text to tokens.
        options: of the request.
        tuned: what was found to be best for this drafter here.
    """

    bundle: Bundle
    engines: Mapping[str, Engine]
    encode: Callable[[str], list[int]]
    options: Options
    tuned: Choice | None = None

    def template(self, own: Template, num_heads: int, num_ranks: int) -> Template:
        """What drafts of so many levels and ranks may combine: what --tree says, else `own`.

        Otherwise it is `own`; with quantised weights a chain as deep: its rows have the same bits as plain decoding,
        those of a branching tree have not, and quantised products make that count (docs/decisions/0006-one-row.md).
        A tree that `seqrt tune` chose takes its place, whole and alone if the loop is not to cut it.

        Raises:
            RequestError: no such tree, or one that is too deep or too wide.
        """
        tree = self.options.tree
        if tree is None and self.tuned is not None and (self.tuned.tree == DYNAMIC or not self.options.adaptive):
            tree = self.tuned.tree
        if tree is None:
            return own if self.exact else Template.chain(min(num_heads, own.max_depth))
        if tree == DYNAMIC:
            return Template.dynamic(num_heads, num_ranks, _DYNAMIC_NODES)
        try:
            template = Template.resolve(tree)
            template.check(num_heads, num_ranks)
        except RequestError as error:
            raise RequestError(f"--tree {tree!r:.60}: {error}") from error
        return template

    @property
    def exact(self) -> bool:
        """Whether products are computed in float, so that the shape of a tree makes no difference that counts."""
        return self.bundle.manifest.quantization == "none"


def _lookup(supplies: Supplies) -> Drafter:
    return LookupDrafter()


def _recycling(supplies: Supplies) -> Drafter:
    own = Template.named(_RECYCLING_TREE)
    memory = supplies.options.memory
    template = supplies.template(own, own.max_depth, RANKS)
    return RecyclingDrafter(
        supplies.bundle.manifest.model.vocab_size, template, None if memory is None else Path(memory)
    )


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
    return CorpusDrafter(np.array(supplies.encode(text), np.int64), branches=supplies.exact)


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


_TRAIN_FREE: Final[Mapping[str, Callable[[Supplies], Drafter]]] = {
    "lookup": _lookup,
    "recycling": _recycling,
    "corpus": _corpus,
}
_OF_HEADS: Final[Mapping[str, Callable[[Supplies, HeadInfo], Drafter]]] = {"medusa": _medusa, "hydra": _hydra}
SPECIAL: Final = ("tree", "corpus", "memory")  # options that only some drafters have a use for: heads use trees
_USES: Final[Mapping[str, tuple[str, ...]]] = {
    NO_DRAFT: (),
    "lookup": (),
    "recycling": ("tree", "memory"),
    "corpus": ("corpus",),
}


def draft_names(bundle: Bundle) -> tuple[str, ...]:
    """What `draft` takes with a bundle."""
    return (NO_DRAFT, *_TRAIN_FREE, *(head.name for head in bundle.manifest.heads))


def ready_names(bundle: Bundle) -> tuple[str, ...]:
    """Those of them that need nothing but the bundle."""
    return tuple(name for name in draft_names(bundle) if name != "corpus")


def for_draft(options: Options, name: str) -> Options:
    """The options for drafter `name`: those that are a matter of other drafters are left out."""
    unused = {option: None for option in SPECIAL if option not in _USES.get(name, ("tree",))}
    return dataclasses.replace(options, draft=name, **unused)  # type: ignore[arg-type]


def make_drafter(supplies: Supplies) -> Drafter | None:
    """The drafter that the options name, None for "none".

    Raises:
        RequestError: no such drafter, or an option that it cannot serve or has no use for.
        BundleError: heads of a kind that this version does not know.
    """
    bundle, options = supplies.bundle, supplies.options
    name, names = options.draft, draft_names(bundle)
    if name not in names:
        raise RequestError(f"--draft {name} is not in this bundle; choose one of {', '.join(names)}")
    usable = for_draft(options, name)
    for option in SPECIAL:
        if getattr(usable, option) != getattr(options, option):
            users = [user for user in names if option in _USES.get(user, ("tree",))]
            raise RequestError(f"--{option} is of no use to --draft {name}; choose --draft {' or '.join(users)}")
    head = next((head for head in bundle.manifest.heads if head.name == name), None)
    if head is None:
        return None if name == NO_DRAFT else _TRAIN_FREE[name](supplies)
    if head.kind not in _OF_HEADS:
        raise BundleError(
            f"{bundle.path} has draft heads {name} of kind {head.kind!r}, this seqrt knows {', '.join(_OF_HEADS)};"
            " upgrade seqrt or choose another --draft"
        )
    return _OF_HEADS[head.kind](supplies, head)
