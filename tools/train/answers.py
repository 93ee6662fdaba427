"""The base model's own greedy answers to the training prompts: the text that heads are trained on.

Heads that draft for a greedy model must predict what that model says, not what a person would have said
(self-distillation). Answers are appended to a JSON-lines file one batch at a time, so a run that is stopped goes on
where it was.

    python -m tools.train.answers --base MODEL.gguf --prompts prompts.jsonl --out answers.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tools.train.base import Cache, Llama, load_base


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered turn: the token ids of the rendered conversation so far, and of the answer."""

    id: str
    task: str
    turn: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str


def render(tokenizer: Any, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Token ids of a conversation whose last turn waits for its answer, by the tokenizer's own chat template."""
    messages = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if index < len(answers):
            messages.append({"role": "assistant", "content": answers[index]})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.inference_mode()
def greedy(model: Llama, prompts: Sequence[Sequence[int]], num_new: int, stop: set[int]) -> list[list[int]]:
    """Greedy continuations of a batch of prompts, each up to and with its stop token, at most ``num_new`` tokens."""
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(prompt) for prompt in prompts])
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    cache = model.cache(len(prompts), width + num_new)
    rows = list(range(len(prompts)))
    done: list[list[int]] = [[] for _ in prompts]
    for step in range(num_new):
        start = 0 if step == 0 else width + step - 1
        hidden = model.hidden(ids, padding, cache, start)[:, -1]
        chosen = torch.nn.functional.linear(hidden, model.head).argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not (done[row] and done[row][-1] in stop):
                done[row].append(token)
        alive = torch.tensor([i for i, row in enumerate(rows) if done[row][-1] not in stop], dtype=torch.int64)
        if len(alive) == 0:
            break
        ids = chosen[:, None]
        if len(alive) <= 0.75 * len(rows):  # drop finished rows now and then: a copy of the cache costs a step
            rows, padding, ids = [rows[i] for i in alive.tolist()], padding[alive], ids[alive]
            cache = _select(cache, alive)
    return done


def answer_all(
    model: Llama, tokenizer: Any, prompts: Sequence[dict[str, Any]], out: Path, num_new: int, batch: int, max_prompt: int
) -> None:
    """Answer every turn of every prompt that ``out`` does not hold yet; prompts that are too long are left out.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        prompts: Objects with ``id``, ``task`` and ``turns``.
        out: JSON-lines file of answers, appended to.
        num_new: Most tokens of an answer.
        batch: Rows answered together.
        max_prompt: Longest prompt in tokens.
    """
    stop = {tokenizer.eos_token_id}
    num_rounds = max(len(prompt["turns"]) for prompt in prompts)
    for turn in range(num_rounds):
        known = {(answer.id, answer.turn): answer for answer in read_answers(out)}
        waiting = []
        for prompt in prompts:
            if turn >= len(prompt["turns"]) or (prompt["id"], turn) in known:
                continue
            earlier = [known.get((prompt["id"], i)) for i in range(turn)]
            texts = [answer.text for answer in earlier if answer is not None]
            ids = render(tokenizer, prompt["turns"][: turn + 1], texts) if len(texts) == turn else []
            if 0 < len(ids) <= max_prompt:
                waiting.append((ids, prompt))
        waiting.sort(key=lambda item: len(item[0]))
        # Shortest and longest batches alternate, so that the progress bar's estimate is fair from the start.
        groups = [waiting[i : i + batch] for i in range(0, len(waiting), batch)]
        with tqdm(total=len(waiting), desc=f"answers, turn {turn + 1}", unit="prompt", mininterval=5) as bar:
            for group in _alternate(groups):
                outputs = greedy(model, [ids for ids, _ in group], num_new, stop)
                lines = [_line(tokenizer, turn, ids, prompt, output) for (ids, prompt), output in zip(group, outputs, strict=True)]
                with out.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))  # one write: Ctrl-C falls between batches or loses one
                bar.update(len(group))


def read_answers(path: Path) -> list[Answer]:
    """The answers in a file, in the order written; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(
            Answer(row["id"], row["task"], row["turn"], tuple(row["prompt"]), tuple(row["answer"]), row["text"])
        )
    return found


def _line(tokenizer: Any, turn: int, ids: list[int], prompt: dict[str, Any], output: list[int]) -> str:
    row = {
        "id": prompt["id"],
        "task": prompt["task"],
        "turn": turn,
        "text": tokenizer.decode(output, skip_special_tokens=True),
        "prompt": ids,
        "answer": output,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _select(cache: Cache, rows: torch.Tensor) -> Cache:
    return [(key[rows], value[rows]) for key, value in cache]


def _alternate(groups: list[list[Any]]) -> Iterator[list[Any]]:
    low, high = 0, len(groups) - 1
    while low <= high:
        yield groups[low]
        if low < high:
            yield groups[high]
        low, high = low + 1, high - 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file or Hugging Face directory")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--max-prompt", type=int, default=900)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_base(options.base, getattr(torch, options.dtype))
    prompts = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    answer_all(model, tokenizer, prompts, options.out, options.new_tokens, options.batch, options.max_prompt)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
