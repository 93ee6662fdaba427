"""Host work of a step: what the loop itself costs beside the engine. No model is needed.

    python -m tools.bench.host

Runs the real loop over engines that compute nothing, with the shapes of SmolLM2-135M and the 64-node Medusa tree, whole
at every step, so that all that is measured is numpy and Python: filling the tree, handing over inputs, judging drafts,
compaction bookkeeping and the drafter's learning.
"""

import itertools
from collections.abc import Mapping
from time import perf_counter

import numpy as np
from tools.bench.function_engine import FunctionEngine

from seqrt.runtime.decoder import Decoder
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.engines import Array, TensorInfo
from seqrt.runtime.generate import STAGES, Loop
from seqrt.runtime.pacing import Pacer
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling
from seqrt.runtime.tree import Template
from seqrt.runtime.verification import Verifier

VOCABULARY, HIDDEN, CANDIDATES, HEADS, TOP, STEPS = 49152, 576, 256, 4, 10, 2000
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


def _drafter() -> MedusaDrafter:
    rng = np.random.default_rng(1)
    guesses = rng.integers(0, 1000, (HEADS, TOP))
    shares = np.sort(rng.dirichlet(np.ones(TOP), HEADS).astype(np.float32))[:, ::-1]

    def heads(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        outputs["token_ids"][:], outputs["log_probabilities"][:] = guesses, np.log(shares)

    info = {"token_ids": TensorInfo(INT, (HEADS, TOP)), "log_probabilities": TensorInfo(FLOAT, (HEADS, TOP))}
    engine = FunctionEngine(heads, {"hidden": TensorInfo(FLOAT, (1, HIDDEN))}, info)
    return MedusaDrafter(engine, Template.named("mc_sim_7b_63"))


def main() -> None:
    """Prints the median of each stage in microseconds."""
    sampler = Sampler(Sampling(), VOCABULARY)
    loop = Loop(
        decoder=_decoder(),
        full_logits=lambda hidden: np.zeros((len(hidden), VOCABULARY), np.float32),
        sampler=sampler,
        verifier=Verifier(None, sampler),
        drafter=_drafter(),
        pacer=Pacer(64, adaptive=False),
    )
    start = perf_counter()
    for _ in itertools.islice(loop.run(range(32)), STEPS):
        pass
    total = (perf_counter() - start) / STEPS
    stages = np.median(np.array(loop.trace.stage_seconds), axis=0) * 1e6
    print("  ".join(f"{name} {value:.0f}" for name, value in zip(STAGES, stages, strict=True)), "us (medians)")
    print(f"median step {stages.sum():.0f} us, mean in all {total * 1e6:.0f} us, {loop.trace.rows[-1]} nodes")


if __name__ == "__main__":
    main()
