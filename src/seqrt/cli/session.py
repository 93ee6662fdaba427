"""Opening what a command works on, with every option checked before anything is computed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from seqrt.cli.common import check_tree
from seqrt.cli.console import note
from seqrt.errors import RequestError
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from seqrt.runtime.model import Model

_BUILT_IN: Final = Path(__file__).with_name("prompts.jsonl")


def open_model(bundle: Path, backend: str, threads: int, *wanted: Options) -> "Model":
    """Loads a bundle and checks that it can serve what is wanted.

    Raises:
        BundleError: it is not a bundle, or damaged.
        EngineError: the engine is missing or refuses the graphs.
        RequestError: the value of an option is out of range.
    """
    from seqrt.runtime.model import load

    model = load(bundle, backend=backend, threads=threads)
    for options in wanted:
        _check(model, options)
        _warn(options)
    return model


def drafted(model: "Model", names: Sequence[str] | None, options: Options) -> list[Options]:
    """The options of plain decoding, and then those of each drafter: the ones named, else all of the bundle.

    A tree is a matter of draft heads: the others go without.

    Raises:
        RequestError: no such drafter, a tree without any draft heads, or one that they cannot fill.
    """
    heads = {head.name for head in model.bundle.manifest.heads}
    chosen = list(dict.fromkeys(["none", *(names or model.drafts)]))
    every = [dataclasses.replace(options, draft=name, tree=options.tree if name in heads else None) for name in chosen]
    for one in every:
        _check(model, one)
    if not heads & set(chosen):
        _check(model, dataclasses.replace(options, draft=chosen[-1]))  # refuses a tree that none would use
    _warn(options)
    return every


def prompts_of(file: Path | None) -> list[Prompt]:
    """The prompts of a file, else a dozen of our own over different kinds of task.

    Raises:
        RequestError: the file cannot be read, or a line of it is no prompt.
    """
    return read_prompts(_BUILT_IN if file is None else file)


def _check(model: "Model", options: Options) -> None:
    if options.draft not in model.drafts:
        raise RequestError(f"--draft {options.draft} is not in this bundle; choose one of {', '.join(model.drafts)}")
    head = next((head for head in model.bundle.manifest.heads if head.name == options.draft), None)
    if options.tree is not None and head is not None:
        check_tree(options.tree, head.num_heads, head.top_k)
    elif options.tree is not None:
        raise RequestError(
            f"--tree {options.tree} needs draft heads, --draft {options.draft} has none; name some with --draft"
        )


def _warn(options: Options) -> None:
    if options.accept == "typical":
        note("warning: --accept typical is lossy: the text does not keep the model's distribution")
