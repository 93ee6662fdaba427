"""Opening what a command works on, with every option checked before anything is computed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from seqrt.cli.console import note
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
        model.prepare(options)
        _warn(options)
    return model


def drafted(model: "Model", names: Sequence[str] | None, options: Options) -> list[Options]:
    """The options of plain decoding, then those of each drafter: the ones named, else all (corpus if there is one).

    An option that is a matter of some drafters (a tree, a corpus) goes to these; one must be there.

    Raises:
        RequestError: no such drafter, an option that it cannot serve, or that none of them has a use for.
    """
    from seqrt.runtime.drafters.build import SPECIAL, for_draft

    every_name = [name for name in model.drafts if name != "corpus" or options.corpus is not None]
    chosen = list(dict.fromkeys(["none", *(names or every_name)]))
    every = [for_draft(options, name) for name in chosen]
    for option in SPECIAL:
        if all(getattr(one, option) != getattr(options, option) for one in every):
            model.prepare(dataclasses.replace(options, draft=chosen[-1]))  # says who would have a use for it
    for one in every:
        model.prepare(one)
    _warn(options)
    return every


def prompts_of(file: Path | None) -> list[Prompt]:
    """The prompts of a file, else a dozen of our own over different kinds of task.

    Raises:
        RequestError: the file cannot be read, or a line of it is no prompt.
    """
    return read_prompts(_BUILT_IN if file is None else file)


def _warn(options: Options) -> None:
    if options.accept == "typical":
        note("warning: --accept typical is lossy: the text does not keep the model's distribution")
