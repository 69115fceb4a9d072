"""Word problems of one or two steps of arithmetic on small numbers, made from a seed, with the answer to check.

Standard library only: data can be generated, and rewards computed, where torch is not installed.
"""

import random
from dataclasses import dataclass

from efficient_rollout.tasks.arithmetic import Split, split_of

DATA_SOURCE = "efficient_rollout/word_problems"
GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other problems."""

EXAMPLES = (
    (
        "Sam has 4 bags with 5 sweets in each and eats 6 sweets. How many sweets are left?",
        "Sam has 4 * 5 = 20 sweets. He eats 6, so 20 - 6 = 14 sweets are left. The answer is 14.",
    ),
    (
        "Lily has 9 stickers and Tom has 6. How many stickers do they have together?",
        "Lily has 9 and Tom has 6, so together they have 9 + 6 = 15 stickers. The answer is 15.",
    ),
    (
        "There were 11 plates on the shelf. Paul took 3. How many plates are still on the shelf?",
        "Paul took 3 of 11 plates, so 11 - 3 = 8 plates are still on the shelf. The answer is 8.",
    ),
)
"""Questions with the answers that a prompt shows first: a small model takes the form from them, not from an order."""

# Texts with a name {n}, another {o}, things {t} and numbers, and the answer; a draw that makes it less than 1 is drawn
# again.
_ONE_STEP = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", lambda a, b, _: a + b),
    ("{n} has {a} {t} and {o} has {b}. How many {t} do they have together?", lambda a, b, _: a + b),
    ("There are {a} {t} in one box and {b} in another. How many {t} are there in all?", lambda a, b, _: a + b),
    ("{n} found {a} {t} in the morning and {b} in the afternoon. How many {t} did {n} find?", lambda a, b, _: a + b),
    ("{n} has {a} {t} and gives {b} of them to {o}. How many {t} does {n} have left?", lambda a, b, _: a - b),
    ("There were {a} {t} on the table. {n} took {b}. How many {t} are still on the table?", lambda a, b, _: a - b),
    ("{n} has {a} {t}. {o} has {b} fewer. How many {t} does {o} have?", lambda a, b, _: a - b),
    ("{n} needs {a} {t} and has {b}. How many more {t} does {n} need?", lambda a, b, _: a - b),
    ("{n} has {a} boxes with {b} {t} in each. How many {t} does {n} have?", lambda a, b, _: a * b),
    ("Each of {a} children has {b} {t}. How many {t} do they have in all?", lambda a, b, _: a * b),
)
_TWO_STEPS = (
    ("{n} has {a} {t}, buys {b} more and then loses {c}. How many {t} does {n} have now?", lambda a, b, c: a + b - c),
    (
        "{n} has {a} {t}, {o} has {b} and a friend has {c}. How many {t} do they have together?",
        lambda a, b, c: a + b + c,
    ),
    ("{n} has {a} {t}. {o} has {b} more than {n}. How many {t} do they have together?", lambda a, b, _: a + a + b),
    ("{n} has {a} bags with {b} {t} in each, and {c} more {t}. How many {t} does {n} have?", lambda a, b, c: a * b + c),
    ("{n} buys {a} packs of {b} {t} and gives {c} {t} away. How many {t} are left?", lambda a, b, c: a * b - c),
    (
        "One of the {t} costs {a} dollars. {n} buys {b} and pays {c} dollars too much. How many dollars did {n} pay?",
        lambda a, b, c: a * b + c,
    ),
    ("A shop had {a} {t}, sold {b} on Monday and {c} on Tuesday. How many {t} are left?", lambda a, b, c: a - b - c),
    (
        "{n} reads {a} pages a day for {b} days, and then {c} pages. How many pages did {n} read?",
        lambda a, b, c: a * b + c,
    ),
)
_NUMBERS = (2, 12)
_NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jack", "Kate", "Leo", "Mia", "Noah",
)  # fmt: skip
_THINGS = (
    "apples", "books", "cards", "coins", "cups", "eggs", "flowers", "marbles", "oranges", "pencils", "shells", "toys",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WordProblem:
    """Is one question, with its answer in decimal digits, and one or two steps of arithmetic to it."""

    question: str
    answer: str
    num_steps: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the chat that the policy goes on with: `EXAMPLES`, and the question."""
        said = [text for example in EXAMPLES for text in example] + [self.question]
        return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)]


def take(split: Split, seed: int, count: int) -> list[WordProblem]:
    """Return so many problems of one split; the same arguments always give the same."""
    rng = random.Random(f"word-problems-{GENERATOR_VERSION}-{split}-{seed}")
    found: list[WordProblem] = []
    while len(found) < count:
        problem = _draw(rng)
        if split_of(problem.question) == split:
            found.append(problem)
    return found


def _draw(rng: random.Random) -> WordProblem:
    num_steps, templates = rng.choice(((1, _ONE_STEP), (2, _TWO_STEPS)))
    text, formula = rng.choice(templates)
    name, other = rng.sample(_NAMES, 2)
    things = rng.choice(_THINGS)
    answer = 0
    while answer < 1:
        a, b, c = (rng.randint(*_NUMBERS) for _ in range(3))
        answer = formula(a, b, c)
    return WordProblem(text.format(n=name, o=other, t=things, a=a, b=b, c=c), str(answer), num_steps)
