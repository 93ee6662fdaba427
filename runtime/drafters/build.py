"""Drafters by name: those that need nothing but the text, and those of the draft heads in a bundle."""

from collections.abc import Callable, Mapping
from typing import Final

from seqrt.errors import BundleError, RequestError
from seqrt.runtime.bundle import Bundle, HeadInfo
from seqrt.runtime.drafters import Drafter
from seqrt.runtime.drafters.hydra import HydraDrafter
from seqrt.runtime.drafters.lookup import LookupDrafter
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.engines import Engine
from seqrt.runtime.options import NO_DRAFT
from seqrt.runtime.tree import Template

_DEFAULT_TREE: Final = "mc_sim_7b_63"
DYNAMIC: Final = "dynamic"  # the --tree whose shape the heads' own probabilities make
_DYNAMIC_NODES: Final = 64

_TRAIN_FREE: Final[Mapping[str, Callable[[], Drafter]]] = {"lookup": LookupDrafter}


def _medusa(head: HeadInfo, template: Template, engines: Mapping[str, Engine]) -> Drafter:
    return MedusaDrafter(engines[head.graphs[0]], template)


def _hydra(head: HeadInfo, template: Template, engines: Mapping[str, Engine]) -> Drafter:
    prefix = None if head.prefix is None else engines[head.prefix]
    heads = [engines[role] for role in head.graphs[: template.max_depth]]
    return HydraDrafter(heads, template, prefix, head.hidden_state_offset)


_OF_HEADS: Final[Mapping[str, Callable[[HeadInfo, Template, Mapping[str, Engine]], Drafter]]] = {
    "medusa": _medusa,
    "hydra": _hydra,
}


def draft_names(bundle: Bundle) -> tuple[str, ...]:
    """What `draft` takes with a bundle."""
    return (NO_DRAFT, *_TRAIN_FREE, *(head.name for head in bundle.manifest.heads))


def make_drafter(bundle: Bundle, name: str, tree: str | None, engines: Mapping[str, Engine]) -> Drafter | None:
    """The drafter `name`, None for "none".

    Args:
        bundle: where draft heads come from.
        name: one of `draft_names`.
        tree: a named tree or rank paths, for draft heads; None for their default.
        engines: the bundle's graphs by role.

    Raises:
        RequestError: no such drafter, or a tree that it has no use for.
        BundleError: heads of a kind that this version does not know.
    """
    names = draft_names(bundle)
    if name not in names:
        raise RequestError(f"--draft {name} is not in this bundle; choose one of {', '.join(names)}")
    head = next((head for head in bundle.manifest.heads if head.name == name), None)
    if head is not None:
        if head.kind not in _OF_HEADS:
            raise BundleError(
                f"{bundle.path} has draft heads {name} of kind {head.kind!r}, this seqrt knows {', '.join(_OF_HEADS)};"
                " upgrade seqrt or choose another --draft"
            )
        return _OF_HEADS[head.kind](head, _template(head, tree, bundle.manifest.quantization), engines)
    if tree is not None:
        raise RequestError(f"--tree {tree} needs draft heads, --draft {name} has none; name some with --draft")
    return None if name == NO_DRAFT else _TRAIN_FREE[name]()


def _template(head: HeadInfo, tree: str | None, quantization: str) -> Template:
    """What drafts of `head` may combine, `tree` if there is one.

    With quantised weights it is a chain: its rows have the same bits as plain decoding, those of a branching tree have
    not, and quantised products make that count (docs/decisions/0006-one-row.md).
    """
    if tree == DYNAMIC:
        return Template.dynamic(head.num_heads, head.top_k, _DYNAMIC_NODES)
    if tree is not None:
        return Template.resolve(tree)
    if quantization != "none":
        return Template.chain(head.num_heads)
    if head.tree:
        return Template.parse(" ".join(head.tree))
    return Template.named(_DEFAULT_TREE).limited(head.num_heads, head.top_k)
