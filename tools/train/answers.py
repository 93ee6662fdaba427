"""The base model's own greedy answers to the training prompts: the text that heads are trained on.

Heads that draft for a greedy model must predict what that model says, not what a person would have said
(self-distillation). Answers are appended to a JSON-lines file one batch at a time, so a run that is
stopped goes on where it was.

    python -m tools.train.answers --base MODEL.gguf --prompts prompts.jsonl --out answers.jsonl

Prompts with an ``opening`` instead of turns ask the other way round: the model writes the rest of the user's
turn, and with a temperature, so that what it invents can itself be asked (tools.train.prompts, step ``mix``).
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tools.train import states
from tools.train.base import Llama, load_base
from tools.train.decode import Pick, continuations, greedy, sampler
from tqdm import tqdm  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class Job:
    """How prompts are answered.

    Attributes:
        num_new: Most tokens of an answer.
        batch: Rows answered together.
        max_prompt: Longest prompt in tokens; longer ones are left out.
        temperature: 0 for greedy answers.
        seed: Of the draws at a temperature.
    """

    num_new: int = 128
    batch: int = 64
    max_prompt: int = 900
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered turn: the token ids of the rendered conversation so far, and of the answer."""

    id: str
    task: str
    turn: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str

    @property
    def key(self) -> str:
        """Names the turn among all answers."""
        return f"{self.id}/{self.turn}"


def render(tokenizer: Any, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Token ids of a conversation whose last turn waits for its answer, by the tokenizer's chat template."""
    messages = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if index < len(answers):
            messages.append({"role": "assistant", "content": answers[index]})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def render_opening(tokenizer: Any, opening: str) -> list[int]:
    """Token ids of a conversation in which the user has only begun to speak."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": opening}], tokenize=False)
    ids: list[int] = tokenizer(text[: text.rindex(opening) + len(opening)], add_special_tokens=False)["input_ids"]
    return ids


def answer_all(
    model: Llama,
    tokenizer: Any,
    prompts: Sequence[dict[str, Any]],
    out: Path,
    job: Job,
    states_folder: Path | None = None,
) -> None:
    """Answer every turn of every prompt that ``out`` does not hold yet.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        prompts: Objects with ``id``, ``task`` and ``turns``, or ``opening`` in place of the last.
        out: JSON-lines file of answers, appended to.
        job: Sizes and the rule of choice.
        states_folder: Where to keep the hidden states that training needs; computed again later if None.
    """
    stop = {tokenizer.eos_token_id}
    for turn in range(max(len(prompt.get("turns", [""])) for prompt in prompts)):
        waiting = _waiting(tokenizer, prompts, turn, read_answers(out), job.max_prompt)
        groups = [waiting[i : i + job.batch] for i in range(0, len(waiting), job.batch)]
        with tqdm(total=len(waiting), desc=f"answers, turn {turn + 1}", unit="prompt", mininterval=5) as bar:
            for group in _alternate(groups):
                pick: Pick = greedy
                if job.temperature > 0:  # keyed by the batch, so that a resumed run draws what it would have drawn
                    pick = sampler(job.temperature, job.seed + zlib.crc32(group[0][1]["id"].encode()))
                outputs, hidden = continuations(model, [ids for ids, _ in group], job.num_new, stop, pick)
                if states_folder is not None:
                    states.save(states_folder, [f"{prompt['id']}/{turn}" for _, prompt in group], hidden)
                lines = [
                    _line(tokenizer, turn, ids, prompt, output)
                    for (ids, prompt), output in zip(group, outputs, strict=True)
                ]
                with out.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))  # one write: Ctrl-C falls between batches or loses one
                bar.update(len(group))


def _waiting(
    tokenizer: Any, prompts: Sequence[dict[str, Any]], turn: int, answers: Sequence[Answer], max_prompt: int
) -> list[tuple[list[int], dict[str, Any]]]:
    """The unanswered prompts whose earlier turns are answered, with their token ids, shortest first."""
    known = {(answer.id, answer.turn): answer.text for answer in answers}
    waiting = []
    for prompt in prompts:
        if turn >= len(prompt.get("turns", [""])) or (prompt["id"], turn) in known:
            continue
        texts = [known[prompt["id"], i] for i in range(turn) if (prompt["id"], i) in known]
        if len(texts) < turn:
            continue  # an earlier turn was too long
        if "opening" in prompt:
            ids = render_opening(tokenizer, prompt["opening"])
        else:
            ids = render(tokenizer, prompt["turns"][: turn + 1], texts)
        if len(ids) <= max_prompt:
            waiting.append((ids, prompt))
    return sorted(waiting, key=lambda item: len(item[0]))


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
        prompt, answer = tuple(row["prompt"]), tuple(row["answer"])
        found.append(Answer(str(row["id"]), row["task"], row["turn"], prompt, answer, row["text"]))
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


def _alternate(groups: list[list[Any]]) -> Iterator[list[Any]]:
    """Shortest and longest in turn, so that the progress bar's estimate is fair from the start."""
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
    parser.add_argument("--new-tokens", type=int, default=Job().num_new)
    parser.add_argument("--batch", type=int, default=Job().batch)
    parser.add_argument("--max-prompt", type=int, default=Job().max_prompt)
    parser.add_argument("--states", type=Path, help="folder for hidden states, so that training starts at once")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_base(options.base, getattr(torch, options.dtype))
    prompts = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = [{**prompt, "id": str(prompt["id"])} for prompt in prompts]
    if options.states and options.temperature > 0:
        parser.error("--states is for greedy answers")
    job = Job(options.new_tokens, options.batch, options.max_prompt, options.temperature, options.seed)
    answer_all(model, tokenizer, prompts, options.out, job, options.states)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
