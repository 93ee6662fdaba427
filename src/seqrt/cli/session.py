"""Opening what a command works on, with every option checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from click import get_current_context

from seqrt.cli.console import note
from seqrt.errors import RequestError
from seqrt.runtime.options import NO_DRAFT, PAPER, Options
from seqrt.runtime.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from seqrt.runtime.loaded import Loaded
    from seqrt.runtime.model import Model
    from seqrt.runtime.recognizer import Recognizer
    from seqrt.runtime.solver import Solver

_BUILT_IN: Final = Path(__file__).with_name("prompts.jsonl")
L = TypeVar("L", bound="Loaded")


def open_model(bundle: Path, backend: str, threads: int, *wanted: Options) -> "Model":
    """Loads a bundle, for as long as the command runs, and checks that it can serve what is wanted.

    Raises:
        BundleError: it is not a bundle, or damaged.
        EngineError: the engine is missing or refuses the graphs.
        RequestError: the value of an option is out of range.
    """
    from seqrt.runtime.model import load

    model = _closed_at_end(load(bundle, backend=backend, threads=threads))
    for options in wanted:
        model.drafter(options)
    if wanted:
        _remark(model, wanted)
    return model


def open_recognizer(bundle: Path, backend: str, threads: int) -> "Recognizer":
    """Loads a bundle that reads images, for as long as the command runs.

    Raises:
        BundleError: it is not a bundle, damaged, or for another task.
        EngineError: the engine is missing or refuses the graphs.
        RequestError: the value of an option is out of range.
    """
    from seqrt.runtime.recognizer import load

    return _closed_at_end(load(bundle, backend=backend, threads=threads))


def open_solver(bundle: Path, backend: str, threads: int) -> "Solver":
    """Loads a bundle that points, for as long as the command runs.

    Raises:
        BundleError: it is not a bundle, damaged, or for another task.
        EngineError: the engine is missing or refuses the graphs.
        RequestError: the value of an option is out of range.
    """
    from seqrt.runtime.solver import load

    return _closed_at_end(load(bundle, backend=backend, threads=threads))


def _closed_at_end(loaded: L) -> L:
    """The same; when the command ends it gives back memory of a GPU, and keeps kernels that were compiled for it."""
    if (context := get_current_context(silent=True)) is not None:
        context.call_on_close(loaded.close)
    return loaded


def drafted(model: "Model", names: Sequence[str] | None, options: Options) -> list[Options]:
    """The options of plain decoding, then those of each drafter: the ones named, else all (corpus if there is one).

    An option that is a matter of some drafters (a tree, a corpus) goes to these; one must be there.

    Raises:
        RequestError: no such drafter, an option that it cannot serve, or that none of them has a use for.
    """
    from seqrt.runtime.drafters.build import check_used, for_draft

    ready = model.ready_drafts if options.corpus is None else model.drafts
    named = [part.strip() for name in names or () for part in name.split(",")]
    if "" in named:
        raise RequestError(f"--draft {','.join(names or ())!r:.60} has an empty name; give names with commas between")
    chosen = list(dict.fromkeys(["none", *(named or ready)]))
    every = [for_draft(options, name) for name in chosen]
    for one in every:
        model.drafter(one)
    check_used(model.bundle, options, [name for name in chosen if name != "none"] or chosen)
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
    from seqrt.runtime.tuned import is_chain, tuning_file

    if any(options.accept == "typical" for options in wanted):
        note("warning: --accept typical is lossy: the text does not keep the model's distribution")
    if any(options.lud_mode == PAPER for options in wanted):
        note("warning: --lud-mode paper is lossy: it takes tokens that the model did not check; verify does not")
    if model.tuning_note is not None:
        note(model.tuning_note)
    if not model.branches:
        for options in wanted:
            if not is_chain(model.plan(options).tree):
                note(f"--tree {options.tree} branches: with quantised weights that may change the text (README)")
    if model.tuning is None:
        return
    for options in wanted:
        plan, own = model.plan(options), model.plan(replace(options, draft=NO_DRAFT))
        if plan != own:
            shown = "" if plan.tree is None else f", tree {plan.tree}"
            note(f"--draft {options.draft} as tuned: at most {plan.rows} rows a step{shown}")
    if any(options.draft != NO_DRAFT and options.paced for options in wanted):
        note(f"the loop starts from the costs of steps in {tuning_file(model.backend)}")
