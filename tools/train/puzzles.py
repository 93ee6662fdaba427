"""Templates of prompts that have one right answer: word problems, school mathematics, small riddles."""

from __future__ import annotations

import random

from tools.train.topics import EVERYDAY, ITEMS, PEOPLE


def math_reasoning(rng: random.Random) -> str:
    """A word problem for grade school, of two to four steps."""
    first, second = rng.sample(PEOPLE, 2)
    item, other = rng.sample(ITEMS, 2)
    a, b, c, d = (rng.randint(2, 20) for _ in range(4))
    big, percent, price = rng.randint(3, 40) * 10, rng.choice((5, 10, 20, 25, 50)), rng.randint(2, 15)
    forms = (
        (
            f"{first} has {a * 3} {item}. {second} has twice as many {item} as {first}, and {c} of them "
            f"are broken. How many {item} do they have that are not broken?"
        ),
        (
            f"{first} buys {a} {item} for ${price} each and {b} {other} for ${d} each. {first} pays with "
            f"a ${big * 5} voucher. How much money is left on the voucher?"
        ),
        (
            f"A shop sells {item} in boxes of {a}. On Monday it sold {b} boxes and on Tuesday {c} boxes "
            f"more than on Monday. How many {item} did the shop sell in total?"
        ),
        (
            f"{first} reads {a} pages every morning and {b} pages every evening. How many days does "
            f"{first} need to finish a book of {(a + b) * c} pages?"
        ),
        (
            f"{first} earns ${price} an hour and works {a} hours a day, {rng.randint(3, 6)} days a week. "
            f"How much does {first} earn in {b} weeks?"
        ),
        (
            f"A school has {big} students. {percent}% of them walk to school, and half of the others take "
            "the bus. How many students take the bus?"
        ),
        (
            f"{first} drives at {big // 10 * 5 + 20} miles per hour for {b} hours, then rests for {c} "
            f"minutes, and drives {a * 5} more miles. How many miles did {first} drive altogether?"
        ),
        (
            f"{first}, {second} and a friend share {a * 3 * b} {item} equally. Then {first} gives {c} "
            f"{item} away. How many {item} does {first} have now?"
        ),
        (
            f"A jacket costs ${big}. It is on sale for {percent}% off, and {first} has a coupon for "
            f"another ${a}. How much does {first} pay for the jacket?"
        ),
        (
            f"{first} is {a + 5} years old. {second} is {b} years older than {first}. How old will "
            f"{second} be in {c} years?"
        ),
        (
            f"A tank holds {big * 4} liters of water. It loses {a} liters every hour, and {b} liters are "
            f"added every day. How much water is in the tank after {c} days?"
        ),
        (
            f"{first} plants {a} rows of {b} {other}. If {percent}% of the plants do not grow and each "
            f"plant that grows is sold for ${price}, how much money does {first} get?"
        ),
        (
            f"There are {a * 4} {item} in a box. {first} takes a quarter of them, and {second} takes "
            f"{c % 5 + 1}. How many {item} remain in the box?"
        ),
        (
            f"{first} saves ${a} a week. {second} saves three times as much. After {b} weeks they buy a "
            f"gift for ${c * 10 // 4} together. How much money do they have left?"
        ),
    )  # fmt: skip
    return rng.choice(forms)


def math(rng: random.Random) -> str:
    """A short question of school algebra, geometry or probability."""
    a, b, c = (rng.randint(2, 12) for _ in range(3))
    forms = (
        f"Solve for x: {a}x + {b} = {a * c + b}. Show your steps.",
        f"What is the area of a triangle with vertices at (0, 0), ({a}, 0) and ({b}, {c})?",
        f"If f(x) = {a}x^2 - {b}x + {c}, find f({rng.randint(1, 5)}).",
        f"A bag has {a} red, {b} blue and {c} green balls. What is the probability of drawing a blue ball?",
        f"What is the remainder when {a * 37 + b} is divided by {c + 1}?",
        f"Find two consecutive integers whose sum is {2 * (a * b) + 1}.",
        f"How many ways are there to choose {min(a, 3)} books from {b + 4} books?",
        f"The sides of a rectangle are {a} cm and {b} cm. What are its perimeter and its diagonal?",
        f"Two dice are rolled. What is the probability that the sum is {min(a, 12)}? Explain.",
        f"Simplify the expression ({a}x + {b})(x - {c}).",
    )  # fmt: skip
    return rng.choice(forms)


def reasoning(rng: random.Random) -> str:
    """A small puzzle or a question of common sense."""
    a, b, c = rng.sample(PEOPLE, 3)
    item, topic = rng.choice(ITEMS), rng.choice(EVERYDAY)
    forms = (
        f"{a} is taller than {b}. {b} is taller than {c}. Who is the shortest? Explain your reasoning.",
        f"{a} finished before {b} but after {c}. In what order did they finish the race?",
        f"{a} has two sisters and one brother. How many children do the parents of {a} have?",
        (
            f"All {item} in the room are blue. {a} holds something that is not blue. Can it be one of the "
            f"{item} in the room?"
        ),
        f"If it rains, {a} stays at home. {a} is not at home. Is it raining? Why?",
        (f"{a} goes to the pharmacy every day although nobody in the family is ill. What could be the reasons?"),
        (
            f"Which word does not belong with the others: {item}, {rng.choice(ITEMS)}, "
            f"{rng.choice(ITEMS)}, thunder? Why?"
        ),
        f"{a} is facing north, turns right twice and then left. Which direction is {a} facing now?",
        f"What might happen if everybody in a town gave up {topic} for a year? Think step by step.",
        f"The day after tomorrow is {rng.choice(('Sunday', 'Monday', 'Friday'))}. What day was it yesterday?",
    )
    return rng.choice(forms)
