"""The measurement: every prompt goes to every peer in turn, repeatedly, so that drift meets all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tools.bench.peers.client import Client, PeerError, Variant

WARM_UP_TOKENS = 8
PAUSE_S = 0.05  # the last peer's threads spin a little while before they sleep


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt on one peer, once."""

    variant: str
    prompt: int
    repeat: int
    token_ids: list[int]
    first_s: float
    total_s: float

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate: the first token belongs to the prompt."""
        count = len(self.token_ids) - 1
        return count / (self.total_s - self.first_s) if count > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Facts:
    """What is measured once for a peer."""

    version: str
    load_s: float
    peak_bytes: int
    mean_nll: float | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that was measured; `failures` has the reason for each variant that is missing."""

    variants: list[Variant]
    runs: list[Run]
    facts: dict[str, Facts]
    failures: dict[str, str]


def measure(
    variants: Sequence[Variant],
    prompts: Sequence[list[int]],
    text: list[int],
    *,
    max_new_tokens: int,
    repeats: int,
    logs: Path,
    progress: Callable[[str], None],
) -> Measurement:
    """Measure `variants` on `prompts` (token ids), then the perplexity of each on `text`.

    A variant that fails is left out from there on and its reason recorded; the others go on.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    runs: list[Run] = []
    with ExitStack() as stack:
        clients: list[Client] = []
        for variant in variants:
            progress(f"load {variant.name}")
            try:
                client = stack.enter_context(Client(variant, logs / f"{len(clients)}-{variant.module}.log"))
                clients.append(client)
                client.ask(op="generate", token_ids=prompts[0], max_new_tokens=WARM_UP_TOKENS)
            except PeerError as error:
                failures[variant.name] = str(error)
        for repeat in range(repeats):
            for index, prompt in enumerate(prompts):
                progress(f"repeat {repeat + 1}/{repeats}, prompt {index + 1}/{len(prompts)}")
                shift = (repeat * len(prompts) + index) % max(1, len(clients))  # nobody is always first
                for client in clients[shift:] + clients[:shift]:
                    if client.variant.name in failures:
                        continue
                    time.sleep(PAUSE_S)
                    try:
                        answer = client.ask(op="generate", token_ids=prompt, max_new_tokens=max_new_tokens)
                    except PeerError as error:
                        failures[client.variant.name] = str(error)
                        continue
                    runs.append(Run(client.variant.name, index, repeat, **answer))
        facts = {}
        for client in clients:
            if client.variant.name not in failures:
                progress(f"score {client.variant.name}")
                facts[client.variant.name] = _facts(client, text, failures)
    return Measurement(list(variants), [run for run in runs if run.variant in facts], facts, failures)


def _facts(client: Client, text: list[int], failures: dict[str, str]) -> Facts:
    peak_bytes = client.ask(op="memory")["peak_bytes"]  # before scoring, which holds logits of the whole text
    mean_nll: float | None = None
    try:
        mean_nll = client.ask(op="score", token_ids=text)["mean_nll"]
    except PeerError as error:
        failures[f"{client.variant.name}, perplexity"] = str(error)
    return Facts(client.version, client.load_s, peak_bytes, mean_nll)
