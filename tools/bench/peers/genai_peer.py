"""onnxruntime-genai, with a model made by its own builder (prepare.py).

Options: model (folder), threads, eos_token_ids.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import onnxruntime_genai as og
from tools.bench.peers.worker import Generation, mean_nll, timed


class GenAI:
    """One loaded genai folder."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.version = f"onnxruntime-genai {og.__version__}"
        config = og.Config(options["model"])
        threads = {"intra_op_num_threads": options["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self.model = og.Model(config)

    def start(self, max_length: int) -> Any:
        """Return a generator with an empty cache of `max_length` rows."""
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=max_length, do_sample=False)
        return og.Generator(self.model, parameters)

    def generate(self, token_ids: list[int], max_new_tokens: int) -> Generation:
        """Decode greedily."""

        def tokens() -> Iterator[int]:
            generator = self.start(len(token_ids) + max_new_tokens)
            generator.append_tokens(token_ids)
            while not generator.is_done():
                generator.generate_next_token()
                yield generator.get_next_tokens()[0]

        start_s = time.perf_counter()
        return timed(tokens(), max_new_tokens, self.options["eos_token_ids"], start_s)

    def score(self, token_ids: list[int]) -> float:
        """Score from the logits of a prompt."""
        generator = self.start(len(token_ids) + 1)
        generator.append_tokens(token_ids)
        return mean_nll(generator.get_output("logits")[0, : len(token_ids) - 1], token_ids[1:])


def load(options: dict[str, Any]) -> GenAI:
    """Load the peer."""
    return GenAI(options)
