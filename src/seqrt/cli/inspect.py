"""`seqrt inspect`: what a bundle holds."""

import dataclasses
from typing import Annotated

import typer

from seqrt.cli.common import BundlePath, Json, command
from seqrt.cli.console import emit
from seqrt.runtime.backends import BACKENDS
from seqrt.runtime.bundle import Manifest, open_bundle
from seqrt.runtime.engines.record import engine_folders, read_record, verify_engines
from seqrt.runtime.tuned import tuning_file


@command("seqrt inspect smollm2 --verify")
def inspect(
    bundle: BundlePath,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its hash.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle holds.

    With --verify, also check that every file is the one that was exported.
    """
    opened = open_bundle(bundle)
    folders = engine_folders(bundle)
    if verify:
        opened.verify()
        for folder in folders:
            verify_engines(folder)
    manifest = opened.manifest
    num_bytes = sum(file.size for file in manifest.files.values())
    if as_json:
        engines = [dataclasses.asdict(read_record(folder).settings) | {"path": str(folder)} for folder in folders]
        document = dataclasses.asdict(manifest) | {"path": str(bundle), "bytes": num_bytes, "verified": verify}
        emit(document | {"engines": engines})
        return
    lines = _describe(manifest, num_bytes)
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.glob("*.engine"))
        buckets = ",".join(map(str, read_record(folder).settings.buckets))
        lines.append(("engines", f"{folder.name}, {size / 1e6:.1f} MB, buckets {buckets}"))
    if folders:
        lines.append(("", f"`seqrt doctor {bundle}` says whether they fit this machine"))
    for file in filter(lambda name: (bundle / name).exists(), map(tuning_file, BACKENDS)):
        lines.append(("tuned", f"{file}, used where it was made; `seqrt run` says when and why not"))
    if verify:
        and_engines = ", all engines as built" if folders else ""
        lines.append(("verified", f"all {len(manifest.files)} files are as exported{and_engines}"))
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        print(f"{name:{width}}{value}")


def _describe(manifest: Manifest, num_bytes: int) -> list[tuple[str, str]]:
    lines = [
        ("name", manifest.name),
        ("task", f"{manifest.task} ({manifest.family})"),
        ("size", f"{num_bytes / 1e6:.1f} MB in {len(manifest.files)} files"),
        ("quantization", manifest.quantization),
    ]
    if (model := manifest.model) is not None:
        lines += [
            ("capacity", f"{manifest.capacity} tokens of prompt and answer"),
            ("vocabulary", f"{model.vocab_size} tokens, {model.num_candidates} candidates a row"),
            ("layers", f"{model.num_layers} of width {model.hidden_size}, {model.num_kv_heads} key-value heads"),
        ]
    if (reader := manifest.recognizer) is not None:
        sizes = ", ".join(f"{height} x {width}" for height, width in reader.sizes)
        lines += [
            ("words", f"up to {manifest.capacity} of {reader.num_classes - 1} characters"),
            ("images", f"{sizes} pixels (height x width), {reader.recipe}"),
        ]
    if (solver := manifest.solver) is not None:
        sizes = ", ".join(map(str, solver.sizes))
        lines.append(("points", f"{solver.task} of points with {solver.input_dim} numbers; graphs for up to {sizes}"))
    if manifest.quality is not None:
        quality = manifest.quality
        lines.append(("perplexity", f"{quality.perplexity:.2f}, source {quality.source_perplexity:.2f}"))
        lines.append(("agreement", f"{quality.top1_agreement:.3f} of {quality.tokens} top tokens are the source's"))
    for graph in manifest.graphs:
        lines.append((f"graph {graph.role}", f"{graph.path}: {graph.dtype}, opset {graph.opset}, {graph.profile}"))
    for head in manifest.heads:
        lines.append((f"draft {head.name}", f"{head.kind}: {head.num_heads} heads, {head.top_k} candidates each"))
    if (units := manifest.units) is not None:
        lines.append(
            ("draft lud", f"lexical units of up to {units.lookahead} tokens, beta {units.beta:g}; {units.base}")
        )
    return lines
