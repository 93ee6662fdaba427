"""Checks and measures every backend that works on this machine's GPU, and leaves the findings as JSON.

    python -m tools.gpu BUNDLE [--backend cuda] [--backend rtx] [--prompts FILE] [--output gpu.json]
    python -m tools.gpu BUNDLE --stand-in        # the same without a GPU: shows that the tool works, times nothing

The bundle holds graphs for ort and for each TensorRT wanted. Engines that are missing are built. What a backend refuses
is recorded in its own words. `python -m tools.gpu.synthetic` makes a bundle of the 1B class.
"""

import argparse
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from tools.gpu import suite
from tools.gpu.suite import Document, Sizes

import seqrt
from seqrt.errors import SeqrtError
from seqrt.runtime.backends import tensorrt_engines
from seqrt.runtime.build import build
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import load_flavour
from seqrt.runtime.machine import environment
from seqrt.runtime.model import Model, load
from seqrt.runtime.prompts import Prompt, read_prompts

_PROMPTS = Path(seqrt.__file__).parent / "cli" / "prompts.jsonl"

Open = Callable[[str], Model]


def examine(
    bundle: Bundle,
    backends: Sequence[str],
    prompts: Sequence[Prompt],
    sizes: Sizes,
    open_model: Open,
    keep: Callable[[Document], object] = lambda _: None,
) -> Document:
    """Every backend in turn; one that fails is recorded, and the next one goes on. `keep` is told of each finding."""
    judge = load(bundle.path)
    found: Document = {"bundle": bundle.manifest.name, "environment": environment(0), "backends": {}}
    for backend in backends:
        document = found["backends"][backend] = {}
        start = perf_counter()
        try:
            with open_model(backend) as model:
                for name, finding in _findings(model, judge, prompts, sizes):
                    document[name] = finding
                    keep(found)
        except Exception as error:  # on hardware that nobody has tried yet, anything may come
            document["error"] = str(error) if isinstance(error, SeqrtError) else traceback.format_exc()
        document["seconds"] = round(perf_counter() - start, 1)
        keep(found)
    return found


def _findings(model: Model, judge: Model, prompts: Sequence[Prompt], sizes: Sizes) -> Iterator[tuple[str, object]]:
    """Times first: what compares with the CPU takes long."""
    engines = model.engines
    yield "engine", engines.description
    yield "device", engines.device
    yield "variant", engines.variant
    yield "load_seconds", model.load_seconds
    steps = suite.step_times(model, sizes)
    yield "steps", steps
    yield "bandwidth", suite.bandwidth(model, steps["run_ms"]["1"], engines.cuda)
    yield "compaction", suite.compaction(model, judge, sizes)
    if prompts:
        yield "agreement", suite.agreement(model, judge, prompts, sizes)


def open_here(bundle: Bundle, backend: str) -> Model:
    """A model on a backend of this machine; engines are built if there are none."""
    if backend in ("rtx", "trt"):
        build(bundle, backend)
    return load(bundle.path, backend=backend)


def open_stand_in(bundle: Bundle, backend: str) -> Model:
    """A model on the stand-ins, whatever the backend."""
    from tools.gpu.standin_cuda import StandInCuda
    from tools.gpu.standin_tensorrt import StandInTensorRT, write_engines

    variant = next(variant for variant in bundle.manifest.variants if variant.startswith("rtx-"))
    write_engines(bundle, variant)
    cuda = StandInCuda()
    return Model(bundle, tensorrt_engines(bundle, load_flavour("rtx", StandInTensorRT(cuda)), Cuda(cuda)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it all; 1 if every backend failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", action="append", choices=("cuda", "rtx", "trt"))
    parser.add_argument("--prompts", type=Path, default=_PROMPTS)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--stand-in", action="store_true")
    for name, value in Sizes.__dataclass_fields__.items():
        parser.add_argument(f"--num-{name.replace('_', '-')}", type=int, default=value.default, metavar="N")
    chosen = parser.parse_args(arguments)
    sizes = Sizes(**{name: getattr(chosen, f"num_{name}") for name in Sizes.__dataclass_fields__})

    def keep(found: Document) -> None:
        chosen.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    with TemporaryDirectory() as folder:
        path = chosen.bundle
        if chosen.stand_in:  # its engines must not be taken for real ones, nor real ones for its
            path = shutil.copytree(path, Path(folder) / "bundle", ignore=shutil.ignore_patterns("engines"))
        bundle = open_bundle(path)
        prompts = read_prompts(chosen.prompts) if "tokenizer.json" in bundle.manifest.files else []
        how: Any = open_stand_in if chosen.stand_in else open_here
        backends = ["rtx"] if chosen.stand_in else chosen.backend or ["cuda", "rtx", "trt"]
        found = examine(bundle, backends, prompts, sizes, lambda backend: how(bundle, backend), keep)
    print(json.dumps(found["backends"], indent=2))
    return int(all("error" in document for document in found["backends"].values()))


if __name__ == "__main__":
    sys.exit(main())
