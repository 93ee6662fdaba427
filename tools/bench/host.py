"""Host work of a step: what the loop itself costs beside the engine. No model is needed.

    python -m tools.bench.host

Runs the real loop over engines that compute nothing, with the shapes of SmolLM2-135M and trees of 64 nodes, whole at
every step, so that all that is measured is numpy and Python: filling the tree, handing over inputs, judging drafts,
compaction bookkeeping and the drafter's learning. Then what listening costs: plain steps without a probe and with one,
in turn.
"""

import itertools
from collections.abc import Mapping
from statistics import median
from time import perf_counter

import numpy as np
from tools.bench.function_engine import FunctionEngine

from seqrt.runtime.decoder import Decoder
from seqrt.runtime.drafters import Drafter
from seqrt.runtime.drafters.hydra import HydraDrafter
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.drafters.recycling import RANKS, RecyclingDrafter
from seqrt.runtime.engines import Array, TensorInfo
from seqrt.runtime.generate import STEP_STAGES, Loop
from seqrt.runtime.pacing import Pacer
from seqrt.runtime.probe import OFF, Probe, Recorder
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling
from seqrt.runtime.tree import Template
from seqrt.runtime.verification import Verifier

VOCABULARY, HIDDEN, CANDIDATES, HEADS, TOP, STEPS = 49152, 576, 256, 4, 10, 2000
ROUNDS = 9
INT, FLOAT = np.dtype(np.int64), np.dtype(np.float32)


def _decoder() -> Decoder:
    tokens = np.random.default_rng(0).integers(0, 1000, (64, CANDIDATES))

    def model(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        outputs["topk_ids"][:] = tokens[: len(outputs["topk_ids"])]

    inputs = {
        "token_ids": TensorInfo(INT, (1, "T")),
        "ancestors": TensorInfo(np.dtype(np.bool_), ("T", "T")),
        "depth": TensorInfo(INT, ("T",)),
        "past_len": TensorInfo(INT, (1,)),
        "logit_rows": TensorInfo(INT, ("R",)),
    }
    outputs = {
        "topk_ids": TensorInfo(INT, ("R", CANDIDATES)),
        "topk_logits": TensorInfo(FLOAT, ("R", CANDIDATES)),
        "logsumexp": TensorInfo(FLOAT, ("R",)),
        "hidden": TensorInfo(FLOAT, ("T", HIDDEN)),
    }
    moved = {"keep": TensorInfo(INT, ("A",)), "write": TensorInfo(INT, (1,))}
    compaction = FunctionEngine(lambda inputs, outputs: None, moved, {})
    return Decoder(FunctionEngine(model, inputs, outputs), lambda: compaction, 1 << 20)


def _heads(num_heads: int, num_inputs: Mapping[str, tuple[int | str, ...]]) -> FunctionEngine:
    """Heads that guess the same whatever they are given; `[P, k]` where they are given P paths."""
    rng = np.random.default_rng(num_heads)
    guesses = rng.integers(0, 1000, (num_heads, TOP))
    logs = np.log(np.sort(rng.dirichlet(np.ones(TOP), num_heads).astype(np.float32))[:, ::-1])

    def heads(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        outputs["token_ids"][:], outputs["log_probabilities"][:] = guesses, logs

    info = {"token_ids": TensorInfo(INT, (num_heads, TOP)), "log_probabilities": TensorInfo(FLOAT, (num_heads, TOP))}
    kinds = {name: TensorInfo(INT if name == "path" else FLOAT, shape) for name, shape in num_inputs.items()}
    return FunctionEngine(heads, kinds, info)


def _drafters() -> dict[str, Drafter]:
    """Each over the tree of 63 drafts that Medusa's authors published, or the first 63 of its own."""
    template, state = Template.named("mc_sim_7b_63"), (1, HIDDEN)
    recycling = RecyclingDrafter(VOCABULARY, Template.named("token_recycling"))
    rng = np.random.default_rng(2)
    recycling.matrix[:-1] = rng.integers(0, VOCABULARY, (VOCABULARY, RANKS))
    hydra = [_heads(1, {"state": state, "path": ("P", depth + 1)}) for depth in range(HEADS)]
    return {
        "medusa": MedusaDrafter(_heads(HEADS, {"hidden": state}), template),
        "medusa, dynamic": MedusaDrafter(_heads(HEADS, {"hidden": state}), Template.dynamic(HEADS, TOP, 64)),
        "hydra": HydraDrafter(hydra, template),
        "recycling": recycling,
    }


def main() -> None:
    """Prints the median of each stage in microseconds."""
    print(f"{'':16}", *(f"{stage:>8}" for stage in (*STEP_STAGES[:-1], "all")), "us (medians)")
    for name, drafter in _drafters().items():
        recorder = Recorder()
        loop = _loop(drafter, recorder)
        for _ in itertools.islice(loop.run(range(32)), STEPS):
            pass
        timeline = recorder.take()
        stages = np.array([np.median(timeline.of_steps(stage)) for stage in STEP_STAGES[:-1]]) * 1e6
        print(f"{name:16}", *(f"{value:8.0f}" for value in (*stages, stages.sum())), f"  {max(loop.trace.rows)} nodes")
    off, on = _plain_steps()
    print(f"a plain step: {off:.1f} us without a probe, {on - off:+.1f} us with one")


def _loop(drafter: Drafter | None, probe: Probe) -> Loop:
    sampler = Sampler(Sampling(), VOCABULARY)
    return Loop(
        decoder=_decoder(),
        full_logits=lambda hidden: np.zeros((len(hidden), VOCABULARY), np.float32),
        sampler=sampler,
        verifier=Verifier(None, sampler),
        drafter=drafter,
        pacer=Pacer(64, adaptive=False),
        probe=probe,
    )


def _plain_steps() -> list[float]:
    """Microseconds of a step without drafts, with nobody listening and with a recorder; medians of rounds in turn."""
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for times, probe in zip(seconds, (OFF, Recorder()), strict=True):
            steps = _loop(None, probe).run(range(32))
            next(steps)
            start = perf_counter()
            for _ in itertools.islice(steps, STEPS):
                pass
            times.append((perf_counter() - start) / STEPS)
    return [1e6 * median(times) for times in seconds]


if __name__ == "__main__":
    main()
