"""transformers on the CPU in fp32, with the weights of the GGUF file dequantised (prepare.py).

Options: model (folder), threads, eos_token_ids.
"""

import time
from typing import Any

import torch
import transformers
from tools.bench.peers.worker import Generation, mean_nll


class _Clock:
    """A streamer that notes when tokens arrive: `put` is called for the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    """One loaded Hugging Face directory."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self.options = options
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)

    def generate(self, token_ids: list[int], max_new_tokens: int) -> Generation:
        """Decode greedily."""
        clock = _Clock()
        prompt = torch.tensor([token_ids])
        start_s = time.perf_counter()
        with torch.inference_mode():
            tokens = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, streamer=clock,
                max_new_tokens=max_new_tokens, eos_token_id=self.options["eos_token_ids"],
            )  # fmt: skip
        total_s = time.perf_counter() - start_s
        return Generation(tokens[0, len(token_ids) :].tolist(), clock.times[1] - start_s, total_s)

    def score(self, token_ids: list[int]) -> float:
        """Score from the logits of a prompt."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([token_ids])).logits[0, :-1]
        return mean_nll(logits.numpy(), token_ids[1:])


def load(options: dict[str, Any]) -> Transformers:
    """Load the peer."""
    return Transformers(options)
