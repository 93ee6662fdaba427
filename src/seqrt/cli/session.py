"""Opening what a command works on, with every option checked before anything is computed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from seqrt.cli.console import note
from seqrt.runtime.options import DYNAMIC, Options
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
        model.drafter(options)
    if wanted:
        _remark(model, wanted)
    return model


def drafted(model: "Model", names: Sequence[str] | None, options: Options) -> list[Options]:
    """The options of plain decoding, then those of each drafter: the ones named, else all (corpus if there is one).

    An option that is a matter of some drafters (a tree, a corpus) goes to these; one must be there.

    Raises:
        RequestError: no such drafter, an option that it cannot serve, or that none of them has a use for.
    """
    from seqrt.runtime.drafters.build import SPECIAL, for_draft

    ready = model.ready_drafts if options.corpus is None else model.drafts
    chosen = list(dict.fromkeys(["none", *(names or ready)]))
    every = [for_draft(options, name) for name in chosen]
    for option in SPECIAL:
        if all(getattr(one, option) != getattr(options, option) for one in every):
            model.drafter(dataclasses.replace(options, draft=chosen[-1]))  # says who would have a use for it
    for one in every:
        model.drafter(one)
    _remark(model, every)
    return every


def prompts_of(file: Path | None) -> list[Prompt]:
    """The prompts of a file, else a dozen of our own over different kinds of task.

    Raises:
        RequestError: the file cannot be read, or a line of it is no prompt.
    """
    return read_prompts(_BUILT_IN if file is None else file)


def _remark(model: "Model", wanted: Sequence[Options]) -> None:
    """Says what the user may not expect of these options."""
    if any(options.accept == "typical" for options in wanted):
        note("warning: --accept typical is lossy: the text does not keep the model's distribution")
    if model.tuning_note is not None:
        note(model.tuning_note)
    for options in wanted:
        choice = None if model.tuning is None else model.tuning.choice(options.draft)
        if choice is not None:
            parts = ["costs of steps"]
            if options.tree is None and choice.tree is not None and (choice.tree == DYNAMIC or not options.adaptive):
                parts.append(f"tree {choice.tree}")
            if options.tree is None and options.max_rows is None and not options.adaptive:
                parts.append(f"{choice.rows} rows a step")
            note(f"--draft {options.draft} uses {', '.join(parts)} from tune.json")
