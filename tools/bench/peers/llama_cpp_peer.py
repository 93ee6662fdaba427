"""llama.cpp through llama-cpp-python, with or without its prompt lookup.

Options: gguf, threads, capacity, eos_token_ids, lookup (draft tokens a step; 0 is plain decoding).
"""

import time
from typing import Any

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from tools.bench.peers.worker import Generation, mean_nll, timed


class LlamaCpp:
    """One loaded GGUF file."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        lookup = options["lookup"]
        self.model = self.open(
            options["capacity"],
            draft_model=LlamaPromptLookupDecoding(num_pred_tokens=lookup) if lookup else None,
        )

    def open(self, capacity: int, **more: Any) -> llama_cpp.Llama:
        """Open the file with room for `capacity` tokens."""
        threads = self.options["threads"]
        return llama_cpp.Llama(
            self.options["gguf"], n_ctx=capacity, n_threads=threads, n_threads_batch=threads,
            flash_attn=True,  # its faster setting on a CPU too
            verbose=False, **more,
        )  # fmt: skip

    def generate(self, token_ids: list[int], max_new_tokens: int) -> Generation:
        """Decode greedily."""
        self.model.reset()  # else the prompt's cache from the previous repeat would be used again
        start_s = time.perf_counter()
        tokens = self.model.generate(token_ids, temp=0.0)
        return timed(tokens, max_new_tokens, self.options["eos_token_ids"], start_s)

    def score(self, token_ids: list[int]) -> float:
        """Score with a second context, since only one made with `logits_all` keeps the logits of a prompt."""
        model = self.open(len(token_ids), logits_all=True)
        model.eval(token_ids)
        return mean_nll(model.scores[: len(token_ids) - 1], token_ids[1:])


def load(options: dict[str, Any]) -> LlamaCpp:
    """Load the peer."""
    return LlamaCpp(options)
