"""Training prompts of the kinds that a general speculative-decoding benchmark has, none taken from it.

Prompts are combined from templates and word lists with a seed. Passages to summarise or to answer from are
written by the model itself, and further prompts are invented by it, so there are three steps; the first two
are answered with tools.train.answers before the third:

    python -m tools.train.prompts articles --out article_prompts.jsonl
    python -m tools.train.prompts openings --out openings.jsonl
    python -m tools.train.prompts mix --articles articles.jsonl --invented invented.jsonl --out prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.train import german, kinds, openings, topics
from tools.train.answers import Answer, read_answers

COUNTS = {
    "translation": 420,
    "summarization": 360,
    "rag": 400,
    "qa": 300,
    "math_reasoning": 320,
    "writing": 120,
    "roleplay": 100,
    "reasoning": 90,
    "math": 80,
    "coding": 220,
    "extraction": 100,
    "stem": 110,
    "humanities": 110,
}
"""Prompts of each kind; drafting pays most for the kinds with long inputs that are copied from."""

CODE_PROMPTS = Path("../shared/data/prompts/train_prompts.jsonl")
EVALUATION = Path("../shared/data/prompts/spec_bench_dev.jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A training prompt: one user turn, or more to be answered one after another."""

    id: str
    task: str
    turns: tuple[str, ...]


def article_prompts() -> list[Prompt]:
    """Two requests for a passage on every topic."""
    forms = {
        "article": (
            "Write an encyclopedia article about {}.",
            "Write two paragraphs of facts about {}, without headings or lists.",
        ),
        "news": (
            ("Write a detailed newspaper report about {}. Name the people and the place, and quote two of them."),
            "Write a short news story about {}, with names, dates and figures.",
        ),
    }
    return [
        Prompt(f"{kind}-{index}-{form}", kind, (text.format(topic),))
        for index, (kind, topic) in enumerate(topics.article_topics())
        for form, text in enumerate(forms[kind])
    ]


def opening_rows(seed: int) -> list[dict[str, str]]:
    """First words of users' turns, for the model to go on from at a temperature."""
    rows = []
    for task, (starts, count) in openings.OPENINGS.items():
        rng = random.Random(f"{seed} openings {task}")
        rows += [
            {
                "id": f"{task}-invented-{index}",
                "task": task,
                "opening": openings.opening(rng, rng.choice(starts)),
            }
            for index in range(count)
        ]
    return rows


def invented(answers: Sequence[Answer], rows: Sequence[dict[str, str]]) -> list[Prompt]:
    """The invented turns that came to an end and say something, distinct."""
    texts = {row["id"]: row["opening"] for row in rows}
    found = {}
    for answer in answers:
        text = (texts[answer.id] + answer.text).strip()
        if 4 <= len(text.split()) <= 150 and text[-1] in '.?!"' and "<|" not in text:
            found[text] = Prompt(answer.id, answer.task, (text,))
    return list(found.values())


def passage(text: str, shortest: int = 200) -> str | None:
    """An article cleaned for reuse: whole sentences, none said twice; None if fewer characters are left."""
    kept: list[str] = []
    starts = set()
    whole = text[: max(text.rfind(end) for end in ".!?") + 1]
    for line in whole.replace("**", "").splitlines():
        for sentence in line.strip().replace("! ", ". ").split(". "):
            sentence = sentence.strip().rstrip(".")
            start = " ".join(sentence.split()[:5])
            # A small model that loops repeats how sentences begin more than how they end.
            if len(sentence) > 25 and start not in starts:
                starts.add(start)
                kept.append(sentence)
    result = ". ".join(kept) + "."
    return result if len(result) >= shortest else None


def mix(passages: Sequence[tuple[str, str]], code: Sequence[str], seed: int) -> list[Prompt]:
    """Training prompts of every kind, distinct, in random order.

    Args:
        passages: ``(topic, text)`` pairs to summarise and to answer from; without any, no such prompts.
        code: Coding prompts besides the built-in templates.
        seed: Of the templates' choices.
    """
    makers: dict[str, Callable[[random.Random], str]] = dict(kinds.MAKERS)
    makers["translation"] = lambda rng: f"Translate German to English: {german.sentence(rng)}"
    if passages:
        makers["summarization"] = lambda rng: kinds.summarization(rng, passages)
        makers["rag"] = lambda rng: kinds.rag(rng, passages)
    prompts = []
    for task, count in COUNTS.items():
        rng = random.Random(f"{seed} {task}")  # of its own, so that one kind can change without the others
        given = rng.sample(code, min(len(code), count * 3 // 4)) if task == "coding" else []
        texts = dict.fromkeys(given)
        for _ in range(count * 20):
            if task not in makers or len(texts) >= count:
                break
            texts[makers[task](rng)] = None
        for index, text in enumerate(texts):
            follow_up = kinds.follow_up(rng, task)
            turns = (text,) if follow_up is None else (text, follow_up)
            prompts.append(Prompt(f"{task}-{index}", task, turns))
    random.Random(seed).shuffle(prompts)
    return prompts


def overlapping(prompts: Sequence[Prompt], evaluation: Sequence[str]) -> list[str]:
    """The turns that equal or contain a line (of at least 30 characters) of a text of the evaluation set."""
    whole = {_plain(text) for text in evaluation}
    lines = {_plain(line) for text in evaluation for line in text.splitlines()}
    lines = {line for line in lines if len(line) >= 30}
    turns = [_plain(turn) for prompt in prompts for turn in prompt.turns]
    return [turn for turn in turns if turn in whole or any(line in turn for line in lines)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _turns(path: Path) -> list[str]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [turn for row in rows for turn in row["turns"]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("articles", "openings", "mix"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--articles", type=Path, help="answers to the article prompts, for step mix")
    parser.add_argument("--invented", type=Path, help="what the model made of the openings, for step mix")
    parser.add_argument("--code", type=Path, default=CODE_PROMPTS, help="more coding prompts, if the file exists")
    parser.add_argument("--evaluation", type=Path, default=EVALUATION, help="prompts that must not occur")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.step == "openings":
        _write(opening_rows(options.seed), options.out)
        return
    if options.step == "articles":
        prompts = article_prompts()
    else:
        prompts = mix(_passages(options.articles), _turns(options.code), options.seed)
        if options.invented:
            prompts += invented(read_answers(options.invented), opening_rows(options.seed))
    clash = overlapping(prompts, _turns(options.evaluation))
    if clash:
        raise SystemExit(f"{len(clash)} prompts overlap the evaluation set, first: {clash[0][:200]}")
    _write([asdict(prompt) for prompt in prompts], options.out)
    print(f"{len(prompts)} prompts written to {options.out}")


def _passages(path: Path | None) -> list[tuple[str, str]]:
    """Topic and text of the articles that are long enough, in the order of their prompts."""
    if path is None:
        return []
    texts = {answer.id: passage(answer.text) for answer in read_answers(path)}
    subjects = [topic for _, topic in topics.article_topics() for _ in range(2)]
    rows = zip(article_prompts(), subjects, strict=True)
    return [(topic, text) for prompt, topic in rows if (text := texts.get(prompt.id))]


if __name__ == "__main__":
    main()
