"""One peer in a process of its own: a JSON request per line on stdin, a JSON answer per line on stdout.

A process each keeps libraries, threads and memory apart, and lets each peer have its own environment. This
file imports nothing but the standard library (numpy inside a function): it starts under any interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Generation:
    """New token ids (end-of-sequence included), seconds to the first of them and to the last."""

    token_ids: list[int]
    first_s: float
    total_s: float


class Peer(Protocol):
    """What a peer module's `load(options)` returns."""

    version: str

    def generate(self, token_ids: list[int], max_new_tokens: int) -> Generation:
        """Decode greedily from an empty cache until end of sequence or `max_new_tokens`."""

    def score(self, token_ids: list[int]) -> float:
        """Mean negative log-likelihood (nats) of `token_ids[1:]`, each given all tokens before it."""


def timed(tokens: Iterable[int], max_new_tokens: int, eos_token_ids: list[int], start_s: float) -> Generation:
    """Drain `tokens`; the clock began at `start_s` (`time.perf_counter`)."""
    token_ids: list[int] = []
    first_s = 0.0
    for token in tokens:
        if not token_ids:
            first_s = time.perf_counter() - start_s
        token_ids.append(int(token))
        if len(token_ids) == max_new_tokens or token_ids[-1] in eos_token_ids:
            break
    return Generation(token_ids, first_s, time.perf_counter() - start_s)


def mean_nll(logits: npt.NDArray[np.float32], targets: list[int]) -> float:
    """Mean negative log-likelihood of `targets` under `logits` [len(targets), vocabulary]."""
    import numpy as np

    total = 0.0
    for row, target in zip(logits, targets, strict=True):  # by rows: float64 of all would take gigabytes
        wide = row.astype(np.float64)
        top = wide.max()
        total += float(top + np.log(np.exp(wide - top).sum()) - wide[target])
    return total / len(targets)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    try:  # not getrusage: its maximum survives exec and would report the parent's
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request: `generate`, `score` or `memory`."""
    match request["op"]:
        case "generate":
            return asdict(peer.generate(request["token_ids"], request["max_new_tokens"]))
        case "score":
            return {"mean_nll": peer.score(request["token_ids"])}
        case "memory":
            return {"peak_bytes": peak_bytes()}
        case op:
            raise ValueError(f"unknown request {op!r}; known: generate, score, memory")


def serve(module: str, options: dict[str, Any], requests: Iterable[str], answers: IO[str]) -> None:
    """Load a peer, say so, then answer requests until they end; an exception becomes an `error` answer."""

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        start_s = time.perf_counter()
        peer: Peer = importlib.import_module(module).load(options)
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    send({"load_s": time.perf_counter() - start_s, "version": peer.version})
    for line in requests:
        try:
            send(answer(peer, json.loads(line)))
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Entry point: `worker.py MODULE OPTIONS_JSON`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints to stdout must not break the protocol
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
