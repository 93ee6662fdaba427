"""First words of user turns, which the model goes on from to invent prompts."""

from __future__ import annotations

import random

from tools.train.topics import ITEMS, PEOPLE

OPENINGS: dict[str, tuple[tuple[str, ...], int]] = {
    "qa": (
        (
            "Who",
            "Who played",
            "Who sang",
            "Who wrote",
            "When did",
            "When was the",
            "Where is",
            "Where was",
            "What is the",
            "What does",
            "How many",
            "Which",
            "What year did",
            "Why do",
            "who",
            "when",
            "where",
            "what",
            "who is the",
            "What happened to",
            "The name of",
        ),
        500,
    ),
    "math_reasoning": (
        (
            "{person} has {n}",
            "{person} buys {n}",
            "{person} and {other} each",
            "There are {n}",
            "A {item} costs ${n}",
            "At the zoo, there are {n}",
            "{person} wants to",
            "On Monday, {person}",
            "A train travels {n}",
            "If {person}",
            "A baker",
            "In a class of {n} students,",
            "{person} earns",
            "{person} is {n} years old.",
            "A farmer has {n}",
            "It takes {person} {n} minutes",
            "Every day, {person}",
        ),
        500,
    ),
    "general": (
        (
            "Can you",
            "I'm",
            "I need",
            "What are some",
            "How do I",
            "How can",
            "Explain",
            "Describe",
            "Write a",
            "Write an",
            "Create a",
            "Compose",
            "Compare",
            "Imagine",
            "Suppose",
            "Give me",
            "List",
            "Discuss",
            "Provide",
            "Help me",
            "Rewrite the following",
            "Summarize the following text:",
            "Read the following passage",
            "Extract",
            "Classify",
            "Implement a",
            "Write a Python",
            "What is the difference between",
            "Why",
            "You are",
            "Act as",
            "Identify",
            "Develop a",
            "Translate",
            "Calculate",
            "Is it",
            "Edit",
            "Convert",
            "Tell me",
            "Based on",
            "In the field of",
        ),
        700,
    ),
}
"""First words of user turns that the model goes on from, and how many are asked for of each kind."""


def opening(rng: random.Random, text: str) -> str:
    """An opening with its blanks filled."""
    person, other = rng.sample(PEOPLE, 2)
    return text.format(person=person, other=other, item=rng.choice(ITEMS).removesuffix("s"), n=rng.randint(2, 60))
