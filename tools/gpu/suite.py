"""What is checked and measured of a backend on a GPU: texts, trees, step times, bandwidth, the host's share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from seqrt.runtime.decoder import Decoder
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.lossless import divergence
from seqrt.runtime.model import Model
from seqrt.runtime.profiling.pulse import device_copy
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.tree import Tree

ROWS: Final = (1, 8, 16, 32, 64)
_WARM_UP: Final = 5

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        prompts, new_tokens: that texts are compared on.
        repeats: of each timing.
        trees: that rows are moved after.
        past: rows in the cache while steps are timed.
    """

    prompts: int = 50
    new_tokens: int = 64
    repeats: int = 50
    trees: int = 50
    past: int = 256


def agreement(model: Model, judge: Model, prompts: Sequence[Prompt], sizes: Sizes) -> Document:
    """Greedy texts against those of the CPU, as a rate, and drafted against plain ones by the rule of `verify`."""
    same, positions = 0, []
    drafted: dict[str, Document] = {name: {"mismatches": 0, "ties": 0} for name in model.ready_drafts if name != "none"}
    for prompt in prompts[: sizes.prompts]:
        text = prompt.turns[0] if prompt.turns else prompt.messages[-1]["content"]
        asked: Document = {"max_new_tokens": sizes.new_tokens, "log_probabilities": True}
        plain, other = model.generate(text, **asked), judge.generate(text, **asked)
        found = divergence(other, plain)
        same += found is None
        positions.append(plain.new_tokens if found is None else found.position)
        for name, tally in drafted.items():
            found = divergence(plain, model.generate(text, draft=name, **asked))
            tally["ties"] += found is not None and found.is_tie
            tally["mismatches"] += found is not None and not found.is_tie
    count = len(positions)
    return {
        "prompts": count,
        "same_as_cpu": same,
        "mean_tokens_before_first_difference": float(np.mean(positions)) if count else None,
        "drafted": drafted,
    }


def compaction(model: Model, judge: Model, sizes: Sizes) -> Document:
    """Random trees, scattered paths and resets against the CPU: what lies in the cache shows in what comes next."""
    rng, vocabulary = np.random.default_rng(0), model.bundle.manifest.decoder.vocab_size
    decoders = [_decoder(each) for each in (model, judge)]
    most = min(decoder.max_rows for decoder in decoders)
    worst, agreed, steps = 0.0, 0, 0
    for decoder in decoders:
        decoder.prefill([1, 2, 3])
    for _ in range(sizes.trees):
        if decoders[0].past_len + most >= decoders[0].capacity:
            length = int(rng.integers(1, 4))
            for decoder in decoders:
                decoder.reset(length)
        nodes = int(rng.integers(1, most + 1))
        parents = np.array([-1, *(int(rng.integers(0, i)) for i in range(1, nodes))])
        tree, rows = Tree(rng.integers(0, vocabulary, nodes), parents), np.arange(nodes)
        found, expected = (d.step(tree.tokens, tree.ancestors, tree.depth, rows) for d in decoders)
        worst = max(worst, float(np.abs(found.logsumexp - expected.logsumexp).max()))
        agreed += int((found.topk_ids[:, 0] == expected.topk_ids[:, 0]).sum())
        steps += nodes
        path = np.flatnonzero(tree.ancestors[int(rng.integers(0, nodes))])
        for decoder in decoders:
            decoder.commit(path)
    return {
        "trees": sizes.trees,
        "rows": steps,
        "top1_agreement": agreed / steps,
        "largest_logsumexp_difference": worst,
    }


def step_times(model: Model, sizes: Sizes) -> Document:
    """Median seconds of the engine's run with T rows, and what the host adds to each plain step of the loop."""
    decoder = _decoder(model)
    decoder.prefill(list(range(1, sizes.past + 1)))
    times = {}
    for rows in (rows for rows in ROWS if rows <= decoder.max_rows):
        tree = Tree.chain([1] * rows)
        wanted = np.arange(rows)

        def step(tree: Tree = tree, wanted: Any = wanted) -> None:
            decoder.step(tree.tokens, tree.ancestors, tree.depth, wanted)

        step()
        times[rows] = _median(decoder.engine.run, sizes.repeats)
    model.forget()
    made = model.generate(list(range(1, sizes.past + 1)), max_new_tokens=sizes.repeats, ignore_eos=True)
    between = float(np.median(np.diff(made.trace.arrival_seconds)))
    return {
        "past_rows": sizes.past,
        "run_ms": {str(rows): 1e3 * seconds for rows, seconds in times.items()},
        "plain_step_ms": 1e3 * between,
        "host_gap_us": 1e6 * (between - times[1]),
        "widest_over_one_row": times[max(times)] / times[1],
    }


def bandwidth(model: Model, run_ms: float, cuda: Cuda | None) -> Document:
    """Bytes that a plain step reads, weights and whole caches, over its time, against what copies reach."""
    info = model.bundle.info("decoder", model.engines.variant)
    model.forget()
    read = info.weight_bytes + model.cache_bytes
    reached = read / (run_ms / 1e3) / 1e9
    peak = None if cuda is None else device_copy(cuda)
    return {
        "bytes_per_step": read,
        "gb_per_second": reached,
        "copy_gb_per_second": peak,
        "share": None if peak is None else reached / peak,
    }


def _decoder(model: Model) -> Decoder:
    model.forget()
    return model._decoder


def _median(call: Callable[[], object], repeats: int) -> float:
    """Seconds of a call, after a few that do not count."""
    for _ in range(_WARM_UP):
        call()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)
