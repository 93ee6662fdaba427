"""Templates of the training prompts: a function for a kind of task returns the text of one user turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.train import puzzles
from tools.train.topics import (
    ANIMALS,
    COUNTRIES,
    EVERYDAY,
    HUMANITIES,
    INVENTIONS,
    NEWS,
    PEOPLE,
    PLACES,
    ROLES,
    SCIENCE,
    WORKS,
)

_LENGTHS = (
    "",
    "",
    "",
    " Please answer in fewer than 150 words.",
    " Keep it short.",
    " Use a friendly tone.",
    " Write two paragraphs.",
)


def qa(rng: random.Random) -> str:
    """A short factual question."""
    country, thing, work = rng.choice(COUNTRIES), rng.choice(INVENTIONS), rng.choice(WORKS)
    animal, place, topic = rng.choice(ANIMALS), rng.choice(PLACES), rng.choice((*SCIENCE, *HUMANITIES))
    forms = (
        f"What is the capital of {country}?",
        f"Who was the first president of {country}?",
        f"When did {country} become independent?",
        f"What language is spoken in {country}?",
        f"Which countries border {country}?",
        f"How many people live in {country}?",
        f"What is the largest city in {country}?",
        f"What is the currency of {country}?",
        f"Who invented the {thing}?",
        f"When was the {thing} invented?",
        f"How does the {thing} work?",
        f"Who wrote {work}?",
        f"What is {work} about?",
        f"When was {work} first published?",
        f"Who is the main character in {work}?",
        f"Where does the story of {work} take place?",
        f"How long do {animal} live?",
        f"What do {animal} eat?",
        f"Where do {animal} live in the wild?",
        f"How many species of {animal} are there?",
        f"What is {place} famous for?",
        f"What is the best time to visit {place}?",
        f"What is the weather like in {place} in winter?",
        f"Where does the term {topic} come from?",
        f"When did people first learn about {topic}?",
        f"Why is it important to know about {topic}?",
        f"Who discovered or first described {topic}?",
    )
    text = rng.choice(forms)
    return text[0] + text[1:].lower() if rng.random() < 0.25 else text


def writing(rng: random.Random) -> str:
    """A creative or practical text on a topic."""
    topic, place, animal = rng.choice(EVERYDAY), rng.choice(PLACES), rng.choice(ANIMALS)
    person = rng.choice(PEOPLE)
    forms = (
        f"Write a blog post about {topic} for beginners.",
        f"Write a persuasive email to convince your manager to support a club for {topic}.",
        f"Describe a morning in {place} with vivid details.",
        f"Write a short story about {person}, who travels to {place} and finds a mysterious letter.",
        f"Draft a professional email to ask a colleague for feedback on a report about {topic}.",
        f"Write a poem about {animal} and the changing seasons.",
        f"Imagine you write a travel guide. Recommend three things to do in {place}.",
        f"Write an outline for an article that compares {topic} and {rng.choice(EVERYDAY)}.",
        f"Write a fairy tale in which {animal} teach a king a lesson.",
        f"Write a product description for a smart device that helps with {topic}.",
        f"Write a speech for the opening of a festival of {topic} in {place}.",
        f"Write the opening paragraph of a mystery novel set in {place}.",
    )
    return rng.choice(forms) + rng.choice(_LENGTHS)


def roleplay(rng: random.Random) -> str:
    """A request to speak as somebody."""
    role, topic = rng.choice(ROLES), rng.choice((*EVERYDAY, *SCIENCE))
    forms = (
        f"Pretend to be {role}. What do you think about {topic}?",
        f"Act as {role} and explain {topic} to a child.",
        f"You are {role}. A stranger asks you for advice about {topic}. Stay in character.",
        f"Imagine that you are {role} and describe an ordinary day in your life.",
        f"Take on the role of {role}. My first question is: how did you become interested in {topic}?",
    )
    return rng.choice(forms) + rng.choice(_LENGTHS)


def coding(rng: random.Random) -> str:
    """A request for a small program."""
    structure = rng.choice(
        (
            "list",
            "dictionary",
            "string",
            "linked list",
            "binary tree",
            "matrix",
            "stack",
            "queue",
            "text file",
            "CSV file",
        )
    )
    task = rng.choice(
        (
            "counts the elements",
            "finds the largest element",
            "reverses it",
            "removes duplicates",
            "sorts it",
            "prints every second element",
            "checks whether it is empty",
            "merges two of them",
            "searches for a value",
            "computes the average",
        )
    )
    language = rng.choice(("Python", "Python", "Python", "C++", "JavaScript", "Java"))
    topic = rng.choice(EVERYDAY)
    forms = (
        f"Write a {language} function that takes a {structure} and {task}.",
        f"Implement a {language} program that reads a {structure} and {task}. Explain how it works.",
        f"Write a class in {language} for a {structure} with a method that {task}, and give an example.",
        f"Write a simple HTML page about {topic} with a heading, a list and a button.",
        f"Write an SQL query for a table about {topic} that returns the ten newest rows.",
        (
            f"What is the time complexity of a function that takes a {structure} and {task}? Show the "
            f"code in {language}."
        ),
    )
    return rng.choice(forms)


def extraction(rng: random.Random) -> str:
    """A request to pull structured facts out of a few lines."""
    people = rng.sample(PEOPLE, 3)
    places, topics = rng.sample(PLACES, 3), rng.sample(EVERYDAY, 3)
    ages = [rng.randint(19, 78) for _ in people]
    facts = "\n".join(
        f"{i + 1}. {person}, who is {age} years old and lives in {place}, likes {topic}."
        for i, (person, age, place, topic) in enumerate(zip(people, ages, places, topics, strict=True))
    )
    sales = "\n".join(
        f"{place}; {rng.randint(2001, 2023)}; ${rng.randint(1, 90)}.{rng.randint(0, 9)} million" for place in places
    )
    mood = rng.sample(("wonderful", "far too long", "average", "the best of the year", "boring", "moving and funny"), 3)
    reviews = "\n".join(
        f"{i + 1}. The film about {topic} was {word}." for i, (topic, word) in enumerate(zip(topics, mood, strict=True))
    )
    forms = (
        f"Extract the name, age, city and hobby of every person and output them as a JSON array.\n{facts}",
        f"Make a table with the columns name, age and place from the following text.\n{facts}",
        f"Who is the oldest person in this list? Copy the whole sentence.\n{facts}",
        f"Read the sales figures below and answer: which region sold the most, and in which year?\n{sales}",
        f"Convert the following lines to CSV with a header.\n{sales}",
        f"Rate each review from 1 (negative) to 5 (positive) and return a JSON array of integers.\n{reviews}",
        f"List all topics that are mentioned in these reviews.\n{reviews}",
    )
    return rng.choice(forms)


def stem(rng: random.Random) -> str:
    """A question about science or technology."""
    topic, other = rng.sample(SCIENCE, 2)
    forms = (
        f"Explain {topic} in simple terms.",
        f"How do {topic} and {other} relate to each other?",
        f"What are the main stages or parts of {topic}?",
        f"What are common misconceptions about {topic}?",
        f"Describe an experiment that shows how {topic} can be observed.",
        f"Why does {topic} matter for engineers?",
        f"Give three examples of {topic} in daily life and explain each.",
    )
    return rng.choice(forms) + rng.choice(_LENGTHS[:5])


def humanities(rng: random.Random) -> str:
    """A question about history, society or the arts."""
    topic, other = rng.sample(HUMANITIES, 2)
    forms = (
        f"What were the causes and the consequences of {topic}?",
        f"Compare {topic} and {other}.",
        f"How did {topic} influence the modern world?",
        f"Explain the key ideas behind {topic} with examples.",
        f"Discuss the arguments for and against {topic}.",
        f"Write a lesson plan about {topic} for high school students.",
        f"Which role did {topic} play in the history of {rng.choice(COUNTRIES)}?",
    )
    return rng.choice(forms) + rng.choice(_LENGTHS[:5])


def summarization(rng: random.Random, passages: Sequence[tuple[str, str]]) -> str:
    """A passage, or a few joined, to be summarised."""
    texts = [text for _, text in rng.sample(passages, rng.choice((1, 2, 3, 4)))]
    return f"Summarize: {' '.join(texts)}"


def rag(rng: random.Random, passages: Sequence[tuple[str, str]]) -> str:
    """Passages with a title each, and a question about one of them at the end."""
    chosen = rng.sample(passages, rng.choice((2, 3, 4)))
    topic = rng.choice(chosen)[0]
    plain = topic.removeprefix("the ")
    blocks = "\n".join(f"{name[0].upper() + name[1:]} {text}" for name, text in chosen)
    forms = (
        f"What is known about {topic}?",
        f"Why is {plain} important?",
        f"Tell me about {topic}.",
        f"What are the main facts about {topic}?",
        f"How would you describe {topic}?",
        f"Who is involved in {topic}?",
        f"When and where did {topic} begin?",
    )
    news = ("What happened?", "Who was involved, and what did they say?", "When and where did it happen?")
    return f"{blocks}\n{rng.choice(news if topic in NEWS else forms)}"


def follow_up(rng: random.Random, task: str) -> str | None:
    """A second turn for some prompts of the conversational kinds."""
    general = (
        "Rewrite your previous answer in simpler words.",
        "Make it shorter.",
        "Can you give another example?",
        "Now explain why.",
        "Rewrite it as a list of bullet points.",
        "Add a short summary at the end.",
    )
    special = {
        "writing": (
            "Rewrite it as a poem.",
            "Start every sentence with the letter S.",
            "Make it sound more formal.",
        ),
        "roleplay": ("What would you do if you were wrong?", "What is your favorite memory?"),
        "coding": ("Add comments to the code.", "Can it be made faster?", "Add error handling to the code."),
        "extraction": ("Sort the result by name.", "Give the same result as YAML."),
    }
    conversational = {
        "writing",
        "roleplay",
        "reasoning",
        "math",
        "coding",
        "extraction",
        "stem",
        "humanities",
    }
    if task not in conversational or rng.random() > 0.3:
        return None
    return rng.choice((*general, *special.get(task, ())))


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "qa": qa,
    "math_reasoning": puzzles.math_reasoning,
    "math": puzzles.math,
    "writing": writing,
    "roleplay": roleplay,
    "reasoning": puzzles.reasoning,
    "coding": coding,
    "extraction": extraction,
    "stem": stem,
    "humanities": humanities,
}
"""Kinds that need no passages."""
