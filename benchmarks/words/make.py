"""Word problems in GSM8K's format, small enough for a model of a few million parameters, for the two recipes here.

    python benchmarks/words/make.py words

    words/train.jsonl, words/test.jsonl    {"question": "Ann has 7 pens. Ann buys 3 more. …", "answer": "… #### 20"}
    words/cold.jsonl                       conversations: solved in the four styles of data/tasks/chain.py
    words/told/documents-0.parquet         the same as documents, for a base model that is to be rewarded at once

Two to five operations, every value between 0 and 22 (the numbers that a laptop's tokenizer has as one token), factors 2
and 3. A problem's arithmetic decides its side, so no story of the test side tells a sum that training has told. Some
sentences say nothing that counts, some of them with a number in it.

It does not handle units, fractions or numbers in words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from sekkei.core.seed import derive_seed
from sekkei.data.tasks import held_out
from sekkei.data.tasks.chain import STYLES
from sekkei.text.document import Document, write_documents

LARGEST = 22
OPERATIONS = (2, 3, 4, 5)
HELD_OUT_PERCENT = 10
PEOPLE = ("Ann", "Bob", "Eva", "Tom", "Mia", "Sam", "Lea", "Max")
THINGS = ("pens", "books", "coins", "cards", "stones", "shells", "apples", "keys", "stamps", "nuts")
STORIES = {
    "add": ("{who} buys {k} more.", "{other} gives {who} {k} more.", "{who} finds {k} of them.", "Then {k} more come."),
    "minus": ("{who} gives {k} to {other}.", "{who} loses {k}.", "{k} of them break.", "{other} takes {k} away."),
    "times": ("The next day there are {k} times as many.", "{who} swaps each of them for {k}."),
}
IDLE = ("It is a sunny day.", "{other} is {k} years old.", "They live in house number {k}.", "{who} likes {things}.")

Step = tuple[str, int]


def arithmetic(rng: random.Random) -> tuple[int, list[Step]]:
    """A start and operations whose values all lie in 0 … LARGEST."""
    value = start = rng.randint(1, 15)
    steps: list[Step] = []
    for _ in range(rng.choice(OPERATIONS)):
        able = [("add", k) for k in range(1, 10) if value + k <= LARGEST]
        able += [("minus", k) for k in range(1, 10) if value - k >= 0]
        able += [("times", k) for k in (2, 3) if value and value * k <= LARGEST] * 4
        steps.append(rng.choice(able))
        value = values(value, [steps[-1]])[-1]
    return start, steps


def values(start: int, steps: list[Step]) -> list[int]:
    """The start and the value after each step."""
    found = [start]
    for word, k in steps:
        found.append({"add": found[-1] + k, "minus": found[-1] - k, "times": found[-1] * k}[word])
    return found


def question(rng: random.Random, start: int, steps: list[Step]) -> str:
    """The story, of one person with one kind of thing."""
    who, other = rng.sample(PEOPLE, 2)
    things = rng.choice(THINGS)
    told = [f"{who} has {start} {things}."]
    for word, k in steps:
        if rng.random() < 0.15:
            told.append(rng.choice(IDLE).format(who=who, other=other, things=things, k=rng.randint(2, LARGEST)))
        told.append(rng.choice(STORIES[word]).format(who=who, other=other, k=k))
    return " ".join([*told, f"How many {things} are there now?"])


def thought(start: int, steps: list[Step], style: str) -> str:
    """What the think block says in a style of the chain task: every result, those of two or three steps, or none."""
    if style == "none":
        return ""
    fold = {"every": 1, "two": 2, "three": 3}[style]
    parts, value = [], start
    for first in range(0, len(steps), fold):
        folded = steps[first : first + fold]
        words = "".join(f" {word} {k}" for word, k in folded)
        result = values(value, folded)[-1]
        parts.append(f" {value}{words} = {result}")
        value = result
    return ";".join(parts)


def problem(split: str, number: int) -> tuple[str, int, list[Step]]:
    """Problem `number` of a side: (question, start, steps)."""
    rng = random.Random(derive_seed("words", split, number))
    while True:
        start, steps = arithmetic(rng)
        side = "test" if held_out("words", f"{start} {steps}", HELD_OUT_PERCENT) else "train"
        if side == split:
            return question(rng, start, steps), start, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=512)
    parser.add_argument("--told", type=int, default=30_000, help="solved documents")
    parser.add_argument("--cold", type=int, default=4000, help="solved conversations")
    given = parser.parse_args()
    (given.out / "told").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", given.train), ("test", given.test)):
        rows, answers = [], Counter[int]()
        for number in range(count):
            asked, start, steps = problem(split, number)
            final = values(start, steps)[-1]
            lines = thought(start, steps, "every").strip().replace("; ", "\n")
            rows.append(json.dumps({"question": asked, "answer": f"{lines}\n#### {final}"}))
            answers[final] += 1
        (given.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        most = max(answers.values()) / count
        print(f"{split}: {count} problems; the most frequent answer is right in {most:.1%}")
    documents, talks = [], []
    for number in range(given.told + given.cold):
        asked, start, steps = problem("train", given.train + number)
        thinking, final = thought(start, steps, STYLES[number % len(STYLES)]), values(start, steps)[-1]
        if number < given.told:
            text = f"{asked}\n<think>{thinking}</think> answer: {final}"
            documents.append(Document(id=f"words/{number}", text=text, source="words", lang="en"))
        else:
            said = {"role": "assistant", "reasoning_content": thinking, "content": f" answer: {final}"}
            talks.append(json.dumps({"messages": [{"role": "user", "content": asked}, said]}))
    write_documents(given.out / "told" / "documents-0.parquet", documents)
    (given.out / "cold.jsonl").write_text("\n".join(talks) + "\n", encoding="utf-8")
    print(f"told: {len(documents)} solved documents, cold: {len(talks)} solved conversations, in four styles")


if __name__ == "__main__":
    main()
