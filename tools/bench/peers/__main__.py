"""Measure seqrt beside llama.cpp, onnxruntime-genai and transformers.

`make bench-peers`, or from the root of the checkout

    python -m tools.bench.peers MODEL.gguf --bundle int8=BUNDLE --bundle source=BUNDLE

All decode greedily with the same number of threads, from the same token ids, one prompt at a time; every
prompt goes to every peer before the next, and the whole is repeated. Each peer is a process of its own.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tools.bench.peers.client import ROOT
from tools.bench.peers.measure import measure
from tools.bench.peers.report import document, markdown
from tools.bench.peers.variants import REFERENCE, chosen, peer_variants, seqrt_variants

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.jsonl"
TEXT = ROOT / "exporter" / "quality.txt"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
FOLDER = ROOT / "build" / "peers"


def main(
    gguf: Annotated[Path, typer.Argument(help="The model that all peers get.", exists=True, dir_okay=False)],
    bundle: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a seqrt bundle; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Peers whose name contains this; repeatable.")] = None,
    prompts: Annotated[Path, typer.Option(help="JSONL; the first turn of each line is used.")] = PROMPTS,
    text: Annotated[Path, typer.Option(help="Text for perplexity.")] = TEXT,
    python: Annotated[Path, typer.Option(help="The peers' interpreter.")] = PYTHON,
    folder: Annotated[Path, typer.Option(help="Where peers' models and logs are kept.")] = FOLDER,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    reference: Annotated[str, typer.Option(help="Peer that the ratios are taken to.")] = REFERENCE,
    output: Annotated[Path | None, typer.Option(help="Also write all runs to this JSON file.")] = None,
) -> None:
    """Print a markdown table of tok/s, time to first token, peak memory and perplexity."""
    if not python.exists():
        _stop(f"no interpreter at {python}: run `make peers` first (it compiles for ten minutes)")
    inputs = _inputs(python, gguf.resolve(), prompts, text, folder)
    longest = max(len(prompt) for prompt in inputs["prompts"]) + max_new_tokens
    common = {"threads": threads, "capacity": longest + 16, "eos_token_ids": inputs["eos_token_ids"]}
    variants = peer_variants(python, gguf.resolve(), folder.resolve(), common)
    for entry in reversed(bundle or []):
        name, equals, path = entry.partition("=")
        if not equals or not Path(path).is_dir():
            _stop(f"--bundle {entry}: give NAME=FOLDER, FOLDER being what `seqrt export` wrote")
        variants = seqrt_variants(Path(sys.executable), name, Path(path).resolve(), common) + variants
    try:
        variants = chosen(variants, only or [])
    except ValueError as error:
        _stop(str(error))
    measurement = measure(
        variants, inputs["prompts"], inputs["text"],
        max_new_tokens=max_new_tokens, repeats=repeats, logs=folder / "logs",
        progress=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    settings = {
        "model": gguf.name,
        "prompts": len(inputs["prompts"]),
        "repeats": repeats,
        "new tokens": max_new_tokens,
        "threads": threads,
        "tokens of text for perplexity": len(inputs["text"]),
        "processor": _processor(),
        "load average at the end": f"{os.getloadavg()[0]:.1f}",
    }
    typer.echo(markdown(measurement, reference, settings))
    if output:
        output.write_text(json.dumps(document(measurement, reference, settings), indent=1) + "\n")
    if not measurement.runs:
        raise typer.Exit(1)


def _inputs(python: Path, gguf: Path, prompts: Path, text: Path, folder: Path) -> dict[str, Any]:
    typer.echo("prepare the peers' models (kept for the next time)", err=True)
    arguments = [str(path.resolve()) for path in (gguf, prompts, text, folder)]
    command = [str(python), str(HERE / "prepare.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        _stop(f"prepare.py failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    inputs: dict[str, Any] = json.loads((folder / "inputs.json").read_text())
    return inputs


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _stop(message: str) -> None:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
