"""Prompts that training answers: many, distinct, repeatable, and none of the evaluation set."""

import random
import re

from tools.train import german, kinds, prompts
from tools.train.answers import Answer


def test_prompts_are_many_distinct_and_repeatable() -> None:
    passages = [(f"topic {i}", f"Sentence number {i} about it. " * 5) for i in range(8)]
    made = prompts.mix(passages, ["Write code."], seed=3)
    assert made == prompts.mix(passages, ["Write code."], seed=3)
    assert made != prompts.mix(passages, ["Write code."], seed=4)
    assert {prompt.task for prompt in made} == set(prompts.COUNTS)
    assert len(made) >= 2400
    assert len({prompt.turns[0] for prompt in made}) == len(made)


def test_prompts_without_passages_leave_out_what_needs_them() -> None:
    assert {prompt.task for prompt in prompts.mix([], [], 0)} == set(prompts.COUNTS) - {
        "summarization",
        "rag",
    }


def test_overlap_with_the_evaluation_set_is_found() -> None:
    line = "Who was the first person that walked around the lake?"
    made = [
        prompts.Prompt("x", "qa", (f"Summarize: {line.upper()}  And more.",)),
        prompts.Prompt("y", "qa", ("Hi",)),
    ]
    assert prompts.overlapping(made, ["other\n" + line]) == [f"summarize: {line.lower()} and more."]
    assert prompts.overlapping(made, ["hi"]) == ["hi"]
    assert prompts.overlapping(made, ["something else"]) == []


def test_passage_drops_loops_and_the_cut_end() -> None:
    text = "Bees live in large and busy hives. " * 3 + "They make honey out of nectar from flowers. And then they"
    assert prompts.passage(text, shortest=10) == (
        "Bees live in large and busy hives. They make honey out of nectar from flowers."
    )
    assert prompts.passage(text, shortest=1000) is None


def test_openings_and_inventions() -> None:
    rows = prompts.opening_rows(1)
    assert len({row["id"] for row in rows}) == len(rows)
    assert not any("{" in row["opening"] for row in rows)
    said = [
        Answer(rows[0]["id"], "qa", 0, (1,), (5, 2), " has been to the moon?"),
        Answer(rows[1]["id"], "qa", 0, (1,), (5,), " no end"),
    ]
    kept = prompts.invented(said, rows)
    assert [prompt.turns for prompt in kept] == [(f"{rows[0]['opening']} has been to the moon?",)]


def test_german_sentences_are_filled_and_varied() -> None:
    rng = random.Random(0)
    made = {german.sentence(rng) for _ in range(400)}
    assert len(made) > 380
    assert all(re.fullmatch(r"[A-ZÄÖÜ„][^{}]*[.?]", text) for text in made)


def test_every_kind_fills_its_templates() -> None:
    rng = random.Random(0)
    for maker in kinds.MAKERS.values():
        assert all("{" not in maker(rng) and maker(rng) for _ in range(100))
