"""`seqrt export`: from a checkpoint to a bundle."""

import dataclasses
import importlib.resources
import math
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import Json, command, refuse
from seqrt.cli.console import emit, everything_to_stderr, note, status
from seqrt.errors import ExportError, RequestError, SeqrtError
from seqrt.runtime.bundle import RECIPES, RESERVED_NAMES, SOLVER_TASKS, Quality, open_bundle, record_quality

if TYPE_CHECKING:
    from seqrt.exporter.export import Report

_MODEL, _RECOGNIZER, _SOLVER = "language model", "recogniser", "pointer model"
_NAME: Final = re.compile(r"[A-Za-z][\w-]*")


class Quantization(str, Enum):
    """How weights are stored."""

    none = "none"
    int8 = "int8"
    int4 = "int4"
    source = "source"


@command("seqrt export SmolLM2-135M-Instruct.gguf smollm2 --heads heads/ --quantize source")
def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="Hugging Face directory or GGUF file; CPPD: .pth of OpenOCR, .pdparams of PaddleOCR; pointer model:"
            " .pt or .ckpt; directory of tools/zoo.",
            show_default=False,
        ),
    ],
    bundle: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    heads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Medusa or Hydra heads, by the name that --draft takes, else by what they are; repeat for several.",
        ),
    ] = None,
    lud: Annotated[
        Path | None,
        typer.Option(
            metavar="ADAPTER",
            help="Lexical units: the adapter that tools.lud.train wrote, merged into the weights; for --draft lud.",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        Quantization, typer.Option(help="Weights; source keeps a GGUF's own blocks, what cannot be kept as int8.")
    ] = Quantization.none,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:TYPE]",
            help="Engine that the graphs are for: ort, rtx, trt11, trt10.16 or trt10.3, in a type of its own if one is"
            " named; repeat for several. ort if none is given.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Floats: fp32, fp16 or bf16; repeat for several, each for every target."
            " fp32 for ort and fp16 for others if none is given.",
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(help="Most tokens of prompt and answer; 4096 or the model's own.", show_default=False),
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            help="Of a CPPD: its characters, one a line; the usual ones if it knows 36 or 94.", show_default=False
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of a CPPD: pixels of its images; what its weights say.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Of a CPPD: how images are made ready: {', '.join(RECIPES)}; the one for its size.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help=f"Of a pointer model: {', '.join(SOLVER_TASKS)}; what its weights say.",
            show_default=False,
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]", help="Of a pointer model: most points of its graphs; 5,10,20,50,100.", show_default=False
        ),
    ] = None,
    check: Annotated[bool, typer.Option(help="Compare every graph with torch.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at BUNDLE.")] = False,
    quality: Annotated[bool, typer.Option(help="Measure what quantisation costs.")] = True,
    as_json: Json = False,
) -> None:
    """Make a bundle of a model and its draft heads, of a text recogniser, or of a pointer model.

    Nothing appears at BUNDLE before it is complete and checked; an export that fails before leaves nothing
    behind. What quantisation costs is measured afterwards: where that fails, the bundle stays without it.
    """
    start = perf_counter()
    options: dict[str, dict[str, object]] = {  # by what they are for
        _MODEL: {"heads": heads, "lud": lud, "quantize": quantize is not Quantization.none, "capacity": capacity},
        _RECOGNIZER: {"dictionary": dictionary, "image-size": image_size, "recipe": recipe},
        _SOLVER: {"task": task, "sizes": sizes},
    }
    with everything_to_stderr(), status() as progress:
        exporter, measured = _exporter(), None
        common: dict[str, Any] = {"targets": target or ("ort",), "dtypes": dtype or (), "check": check, "force": force}
        common["progress"] = progress
        family = exporter.family(source)
        for other in options.keys() - {family} if source.exists() else ():
            refuse(options[other], f"is for a {other}, and {source} is a {family}")
        if family == _RECOGNIZER:
            size = None if image_size is None else _size(image_size)
            report = exporter.recognizer(source, bundle, dictionary=dictionary, size=size, recipe=recipe, **common)
        elif family == _SOLVER:
            points = None if sizes is None else _points(sizes)
            report = exporter.solver(source, bundle, task=task, sizes=points, **common)
        else:
            paths = _head_paths(heads or [], exporter.head_kind)
            own = {"heads": paths, "lud": lud, "quantize": quantize.value, "capacity": capacity}
            report = exporter.model(source, bundle, **own, **common)
            is_ort = any(name.startswith("ort") for name in common["targets"])
            if quality and quantize is not Quantization.none and is_ort:
                measured = _measured(source, lud, bundle, progress)
    seconds = perf_counter() - start
    for line in report.notes:
        note(line)
    manifest = open_bundle(bundle).manifest
    num_bytes = sum(file.size for file in manifest.files.values())
    if as_json:
        emit(
            {
                "bundle": str(bundle),
                "name": report.name,
                "quantization": quantize.value,
                "variants": list(manifest.variants),
                "bytes": num_bytes,
                "seconds": round(seconds, 3),
                "kept": list(report.kept),
                "kept_bytes": sum(report.kept.values()),
                "rounded": list(report.rounded),
                "rounded_bytes": sum(report.rounded.values()),
                "differences": report.differences,
                "quality": None if measured is None else dataclasses.asdict(measured),
            }
        )
        return
    kinds = ", ".join(manifest.variants)
    print(f"{bundle}: {report.name}, {kinds}, quantization {quantize.value}, {num_bytes / 1e6:.1f} MB, {seconds:.1f} s")
    if (reader := manifest.recognizer) is not None:
        sizes = ", ".join(f"{height}x{width}" for height, width in reader.sizes)
        print(
            f"taken to be trained on images of {sizes}, made ready as {reader.recipe}, with"
            f" {reader.num_classes - 1} characters; if not: --image-size, --recipe, --dictionary"
        )
    _print(report, measured)


@dataclasses.dataclass(frozen=True, slots=True)
class _Exporter:
    """What exports each family, and what tells sources and heads apart."""

    model: Callable[..., "Report"]
    recognizer: Callable[..., "Report"]
    solver: Callable[..., "Report"]
    family: Callable[[Path], str]
    head_kind: Callable[[Path], str]


def _exporter() -> _Exporter:
    """The exporter, with a plain word where its libraries are missing."""
    try:
        from seqrt.exporter.checkpoints.recognizer import is_recognizer
        from seqrt.exporter.checkpoints.solver import is_solver
        from seqrt.exporter.export import export as export_model
        from seqrt.exporter.heads.read import head_kind
        from seqrt.exporter.recognizer import export_recognizer
        from seqrt.exporter.solver import export_solver
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("seqrt"):
            raise
        raise ExportError(f"{error.name} is not installed; run: pip install 'seqrt[export]'") from error

    def family(source: Path) -> str:
        if is_solver(source):
            return _SOLVER
        return _RECOGNIZER if is_recognizer(source) else _MODEL

    return _Exporter(export_model, export_recognizer, export_solver, family, head_kind)


def _size(text: str) -> tuple[int, int]:
    """Height and width.

    Raises:
        RequestError: it is not that.
    """
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if match is None:
        raise RequestError(f"--image-size is {text!r:.40}; give height and width, such as 32x100")
    return int(match[1]), int(match[2])


def _points(text: str) -> list[int]:
    """Numbers of points.

    Raises:
        RequestError: it is no list of such.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"--sizes is {text!r:.40}; give numbers with commas between, such as 20,50") from error


def _head_paths(texts: Sequence[str], kind_of: Callable[[Path], str]) -> dict[str, Path]:
    """`[NAME=]PATH` each, as paths by name; `kind_of` names what has no name.

    Raises:
        RequestError: a name is taken or no name.
    """
    paths: dict[str, Path] = {}
    for text in texts:
        left, separator, right = text.partition("=")
        # A path may hold an equals sign too.
        is_named = separator and "/" not in left and not Path(text).exists()
        name, path = (left, right) if is_named else (kind_of(Path(text)), text)
        if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
            raise RequestError(
                f"--heads {text}: {name!r} cannot be a name; give letters, digits, - or _,"
                f" not {', '.join(RESERVED_NAMES)}"
            )
        if name in paths:
            raise RequestError(f"--heads {text}: the name {name!r} is taken; give each heads a NAME=PATH of its own")
        paths[name] = Path(path)
    return paths


def _measured(source: Path, lud: Path | None, bundle: Path, progress: Callable[[str], object]) -> Quality | None:
    """Measures the finished bundle against its source and records it; None if that fails: the bundle is good."""
    try:
        progress("measuring quality")
        quality = _quality(source, lud, bundle)
        if quality is not None:
            record_quality(bundle, quality)
    except Exception as error:  # whatever it is, the bundle is good
        why = str(error) if isinstance(error, SeqrtError) else f"{type(error).__name__}: {error}"
        note(f"quality is not measured, {bundle} is complete without it: {' '.join(why.split())}")
        return None
    except KeyboardInterrupt:
        note(f"quality is not measured, {bundle} is complete without it: interrupted")
        raise
    return quality


def _quality(source: Path, lud: Path | None, bundle: Path) -> Quality | None:
    """Perplexities and agreement on the text that seqrt ships; None where that cannot be measured."""
    from seqrt.exporter.export import open_model
    from seqrt.exporter.reference import reference_scores
    from seqrt.runtime.model import load

    model = load(bundle)
    text = importlib.resources.files("seqrt.exporter").joinpath("quality.txt").read_text(encoding="utf-8")
    if "tokenizer.json" not in model.bundle.manifest.files:
        note("quality is not measured: the source has no tokenizer")
        return None
    tokens = model.encode(text)[: model.bundle.manifest.capacity - 1]
    scores = model.score(tokens)
    del model  # its weights need not be in memory beside the source's
    log_probabilities, top1 = reference_scores(open_model(source, lud), tokens)
    return Quality(
        tokens=len(log_probabilities),
        perplexity=scores.perplexity,
        source_perplexity=math.exp(-float(log_probabilities.mean())),
        top1_agreement=float((scores.top1_ids == top1).mean()),
    )


def _print(report: "Report", quality: Quality | None) -> None:
    if report.kept:
        print(f"blocks of the source: {_count(report.kept)} kept as they are; {_count(report.rounded)} rounded to int8")
    if report.differences:
        print("largest difference from torch")
    width = max(map(len, report.differences), default=0) + 2
    for graph, outputs in report.differences.items():
        print(f"  {graph:{width}}" + "  ".join(f"{name} {value:.1e}" for name, value in outputs.items()))
    if quality is not None:
        cost = quality.perplexity / quality.source_perplexity - 1
        print(
            f"perplexity {quality.perplexity:.3f}, source {quality.source_perplexity:.3f} ({cost:+.2%});"
            f" top-1 agreement {quality.top1_agreement:.4f}; {quality.tokens} tokens"
        )


def _count(weights: Mapping[str, int]) -> str:
    plural = "" if len(weights) == 1 else "s"
    return f"{len(weights)} weight{plural} ({sum(weights.values()) / 1e6:.1f} MB)"
