"""Options that commands share, and the decorator that gives them to a command.

Every field of `runtime.options.Options` has one line in the table below: its flag is its name, its default is
that of `Options`, its value is checked by `Options`. A command with a parameter `options: Options` gets all.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from seqrt.errors import RequestError
from seqrt.runtime.options import DYNAMIC, Options

Command = Callable[..., None]
T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class State:
    """What holds for the whole process. `debug`: show tracebacks."""

    debug: bool = False


BundlePath = Annotated[Path, typer.Argument(help="Bundle that `seqrt export` made.", show_default=False)]
Backend = Annotated[
    str, typer.Option(help="What computes: cpu, cuda (ONNX Runtime on a GPU), trt or rtx (engines of `seqrt build`).")
]
Threads = Annotated[int, typer.Option(help="Threads of a model call; 0 takes one a core.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="File of prompts: JSONL with prompt, turns or messages a line, or plain text, one a line.",
        show_default=False,
    ),
]
Drafts = Annotated[
    list[str] | None,
    typer.Option(
        "--draft", metavar="NAME[,NAME]", help="Drafters, beside plain decoding. All of the bundle if none is given."
    ),
]


def _set_debug(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, State):
        context.obj.debug = True
    return value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of a failure.")
]

# Field of Options: type on the command line, metavar and help. Order is that of --help.
_TABLE: Final[Mapping[str, tuple[Any, str | None, str]]] = {
    "draft": (str, "NAME", "Drafter: none, lookup, recycling, corpus, lud, or the name of draft heads in the bundle."),
    "tree": (
        str | None,
        "TREE",
        "Draft tree of heads or recycling: a name, rank paths such as '0 00 1', or dynamic; their own if not given.",
    ),
    "corpus": (str | None, "FILE", "Text that --draft corpus drafts from."),
    "memory": (str | None, "FILE", "What --draft recycling begins with; run and chat write to it what they learn."),
    "lud_mode": (
        str | None,
        "MODE",
        "Lexical units of --draft lud: verify or paper (lossy); verify if not given.",
    ),
    "beta": (float | None, None, "Confidence above which --lud-mode paper takes a token; the bundle's if not given."),
    "lookahead": (int | None, "K", "Most tokens of a lexical unit; what the model learnt if neither given nor tuned."),
    "max_rows": (int | None, "ROWS", "Most nodes of a draft tree, the root included; 64 if neither given nor tuned."),
    "adaptive": (bool, None, "Verify only as many drafts as pay, or always the whole tree."),
    "accept": (
        str | None,
        "RULE",
        "greedy, match, reject (drafters that sample) or typical (lossy); the lossless one that fits if not given.",
    ),
    "posterior_threshold": (float, None, "Of --accept typical."),
    "posterior_alpha": (float, None, "Of --accept typical."),
    "max_new_tokens": (int, None, "Most tokens of an answer, which the capacity may end earlier."),
    "min_new_tokens": (int, None, "The answer does not end by itself before so many tokens."),
    "stop": (list[str] | None, "TEXT", "End the answer before this text; repeat for several."),
    "stop_ids": (list[int] | None, "TOKEN", "End the answer at this token id; repeat for several."),
    "ignore_eos": (bool, None, "Do not end at the model's own end-of-text tokens."),
    "temperature": (float, None, "0 is greedy; higher is more random."),
    "top_k": (int, None, "Draw from the k most probable tokens; 0 is off."),
    "top_p": (float, None, "Draw from the fewest tokens with this much probability; 1 is off."),
    "min_p": (float, None, "Drop tokens below this fraction of the best one's probability; 0 is off."),
    "repetition_penalty": (float, None, "Above 1 makes tokens of prompt and answer less likely; 1 is off."),
    "frequency_penalty": (float, None, "Taken from a token's logit each time it was generated; 0 is off."),
    "presence_penalty": (float, None, "Taken once from the logit of each generated token; 0 is off."),
    "no_repeat_ngram": (int, None, "No n-gram of this length occurs twice; 0 is off."),
    "logit_bias": (
        list[str] | None,
        "TOKEN=BIAS",
        "Added to the logit of a token id, -inf bans it; repeat for several.",
    ),
    "seed": (int, None, "Same seed, same text."),
    "raw": (bool, None, "Take the prompt as it is, without the chat template."),
    "log_probabilities": (bool, None, "Report the log-probability of each token (with --json)."),
}


def command(
    example: str, *, without: Sequence[str] = (), defaults: Mapping[str, object] | None = None
) -> Callable[[Command], Command]:
    """Makes a function a command: adds `--debug`, an example, and the fields of its parameter `options`.

    Args:
        example: a command line.
        without: fields of `Options` that the command does not offer.
        defaults: of the command, where they are not those of `Options`.
    """

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function)
        takes_options = "options" in signature.parameters
        names = [name for name in _TABLE if name not in without] if takes_options else []
        base = dataclasses.replace(Options(), **(defaults or {}))  # type: ignore[arg-type]

        @functools.wraps(function)
        def call(**values: Any) -> None:
            del values["debug"]  # its callback has taken it
            if takes_options:
                values["options"] = make_options(base, {name: values.pop(name) for name in names})
            function(**values)

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "options"]
        added = [_parameter(name, getattr(base, name)) for name in names]
        debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        call.__signature__ = signature.replace(parameters=[*own, *added, debug])  # type: ignore[attr-defined]
        call.epilog = f"Example: {example}"  # type: ignore[attr-defined]
        return call

    return decorate


def make_options(base: Options, values: Mapping[str, Any]) -> Options:
    """Options from what was typed.

    Raises:
        RequestError: a value is out of its range; the message begins with the option.
    """
    changes = dict(values)
    for name in ("stop", "stop_ids"):
        if name in changes:
            changes[name] = tuple(changes[name] or ())
    for text in changes.get("stop", ()):
        check_text("--stop", text)
    if "logit_bias" in changes:
        changes["logit_bias"] = dict(map(_bias, changes["logit_bias"] or ()))
    options = dataclasses.replace(base, **changes)
    if options.tree not in (None, DYNAMIC):
        _check_tree(options.tree)
    return options


def _check_tree(tree: str) -> None:
    """Raises RequestError unless `tree` is one, before anything is loaded."""
    from seqrt.runtime.tree import Template

    try:
        Template.resolve(tree)
    except RequestError as error:
        raise RequestError(f"--tree {tree!r:.60}: {error}") from error


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raises RequestError if one of the options, by name, was given; `why` follows its name."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise RequestError(f"--{name} {why}; leave it out")


def check_text(flag: str, text: str) -> None:
    """Raises RequestError for text that the shell passed on as bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text.encode(errors="backslashreplace").decode()
        raise RequestError(f"{flag} is not valid UTF-8: {shown!r:.60}; give it in UTF-8") from error


def check_output(flag: str, file: Path | None, endings: Sequence[str] = ()) -> None:
    """Checks that a file can be written, before anything is computed; None is no file.

    Raises:
        RequestError: its name has none of `endings`, or its folder is missing or cannot be written.
    """
    if file is None:
        return
    folder = file.absolute().parent
    if endings and file.suffix not in endings:
        raise RequestError(f"{flag} {file} is of no known format; give a name that ends in {', '.join(endings)}")
    if not folder.is_dir():
        raise RequestError(f"{flag} {file} is in no folder that exists; make {file.parent} first")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise RequestError(f"{flag} {file} cannot be written; give a file in a folder that you may write to")


def check_drawing(flag: str, file: Path | None, endings: Sequence[str]) -> None:
    """Checks a file that matplotlib is to draw as `check_output` does, and that matplotlib is there.

    Raises:
        RequestError: one of them is not so.
    """
    import importlib.util

    check_output(flag, file, endings)
    if file is not None and importlib.util.find_spec("matplotlib") is None:
        raise RequestError(f"{flag} needs matplotlib; run: pip install 'seqrt[plot]'")


def in_order(numbered: Generator[tuple[int, T], None, None]) -> Iterator[tuple[int, T]]:
    """What comes with numbers, in the order of the numbers, as soon as that can be; closes it at the end."""
    waiting: dict[int, T] = {}
    due = 0
    with contextlib.closing(numbered):
        for number, item in numbered:
            waiting[number] = item
            while due in waiting:
                yield due, waiting.pop(due)
                due += 1


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise RequestError(f"--logit-bias is {text!r}; give TOKEN=BIAS, for example 42=-1.5") from error


def _parameter(name: str, default: object) -> inspect.Parameter:
    kind, metavar, text = _TABLE[name]
    flag = f"--{name.replace('_', '-')}"
    if name == "adaptive":
        flag += "/--no-adaptive"
    shown = default if default not in ((), {}) else None
    option = typer.Option(flag, metavar=metavar, help=text, show_default=shown is not None and kind is not bool)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=Annotated[kind, option])
