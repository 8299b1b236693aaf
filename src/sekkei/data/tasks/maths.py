"""Short worked problems of the school kind: thirteen families, correct by construction.

addition and subtraction with carries and borrows written out, multiplication split by place value, division with a
remainder, linear equations, percentages, ratios, sequences, areas and perimeters, unit conversion, the greatest common
divisor by Euclid, the mean of a list, and money problems of several sentences.

Every solution writes its arithmetic as "a op b = c" and ends in a sentence that names the answer; the numbers are
modest and every answer is an integer. A document holds one to four problems, mostly of different families.

What it does not handle: proofs, geometry beyond rectangles and triangles, negative or fractional answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sekkei.core.errors import UserError

_PLACES = ("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands")
_NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Hana",
    "Ken",
    "Lucy",
    "Maya",
    "Noah",
    "Omar",
    "Rosa",
    "Tom",
)
_GOODS = ("notebooks", "apples", "pencils", "cups", "tickets", "stamps", "books", "lemons", "bottles", "candles")
_UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("dozens", "pieces", 12),
)
_CLOSINGS = ("The answer is {}.", "So the answer is {}.", "Answer: {}.", "Therefore the answer is {}.")
_LAYOUTS = (
    ("Problem: ", "Solution: "),
    ("Question: ", "Answer with steps: "),
    ("Q: ", "A: "),
    ("Exercise. ", "Worked solution. "),
    ("", ""),
)


@dataclass(frozen=True, kw_only=True)
class MathsProblem:
    """One problem.

    Args:
        family: the name of the family, a key of `FAMILIES`.
        form: which of the family's forms it is (a family with one form repeats its name).
        given: the numbers of the question that determine the answer, in the order that the form defines.
        question, solution: plain text; the solution ends in a sentence that names the answer.
        answer: an integer in decimal digits.
    """

    family: str
    form: str
    given: tuple[int, ...]
    question: str
    solution: str
    answer: str


def maths_problem(rng: random.Random, family: str | None = None) -> MathsProblem:
    """Draw one problem, of `family` or of any.

    Raises:
        UserError: the family does not exist.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(f"family: got {family!r}, must be one of {', '.join(FAMILIES)}")
    family = family or rng.choice(list(FAMILIES))
    form, given, question, steps, answer = FAMILIES[family](rng)
    solution = f"{steps} {rng.choice(_CLOSINGS).format(answer)}"
    return MathsProblem(family=family, form=form, given=given, question=question, solution=solution, answer=str(answer))


def maths_document(rng: random.Random) -> str:
    """A text of one to four problems with their solutions, in one layout."""
    before, between = rng.choice(_LAYOUTS)
    families = rng.sample(list(FAMILIES), rng.randint(1, 4))
    if rng.random() < 0.25:  # an exercise sheet of one kind
        families = families[:1] * len(families)
    blocks = []
    for family in families:
        problem = maths_problem(rng, family)
        blocks.append(f"{before}{problem.question}\n{between}{problem.solution}\n")
    return "\n".join(blocks)


# A family draws (form, given, question, steps, answer).
_Drawn = tuple[str, tuple[int, ...], str, str, int]


def _addition(rng: random.Random) -> _Drawn:
    digits = rng.choice((2, 2, 3, 3, 4))
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    steps, carry = ["Add the digits from the right."], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        written = f"{x} + {y} + {carry}" if carry else f"{x} + {y}"
        carried = f", carry {total // 10}" if total > 9 else ""
        steps.append(f"{_PLACES[place]}: {written} = {total}, write {total % 10}{carried}.")
        carry = total // 10
    if carry:
        steps.append(f"Write the last carry, {carry}, in front.")
    steps.append(f"{a} + {b} = {a + b}.")
    asked = rng.choice(("What is {} + {}?", "Compute {} + {}.", "Add {} and {}.", "Find the sum of {} and {}."))
    return "addition", (a, b), asked.format(a, b), " ".join(steps), a + b


def _subtraction(rng: random.Random) -> _Drawn:
    digits = rng.choice((2, 2, 3, 3, 4))
    b, a = sorted(rng.sample(range(10 ** (digits - 1), 10**digits), 2))
    steps, borrow = ["Subtract the digits from the right."], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        lent = f"{x} - {borrow} = {x - borrow} after lending, " if borrow else ""
        x -= borrow
        borrow = int(x < y)
        taken = f"{x} is less than {y}, borrow 10: {x} + 10 = {x + 10}, {x + 10} - {y} = {x + 10 - y}"
        steps.append(f"{_PLACES[place]}: {lent}{taken if borrow else f'{x} - {y} = {x - y}'}.")
    steps.append(f"{a} - {b} = {a - b}.")
    ways = ("What is {0} - {1}?", "Subtract {1} from {0}.", "How much is {0} minus {1}?", "Take {1} away from {0}.")
    return "subtraction", (a, b), rng.choice(ways).format(a, b), " ".join(steps), a - b


def _multiplication(rng: random.Random) -> _Drawn:
    a = rng.randint(12, 99)
    b = rng.choice((rng.randint(3, 9), rng.choice([n for n in range(12, 99) if n % 10])))
    split, kept = (b, a) if b > 10 else (a, b)
    parts = [part for part in (split // 10 * 10, split % 10) if part]
    products = [kept * part for part in parts]
    steps = [f"Split {split} by place value: {' + '.join(map(str, parts))} = {split}."]
    steps += [f"{kept} * {part} = {product}." for part, product in zip(parts, products)]
    if len(parts) == 2:
        steps.append(f"{products[0]} + {products[1]} = {a * b}.")
    if len(parts) == 1:
        steps = [f"{split // 10} * {kept} = {split // 10 * kept}.", f"{split // 10 * kept} * 10 = {a * b}."]
    asked = rng.choice(("What is {} * {}?", "Compute {} * {}.", "Multiply {} by {}.", "Find the product of {} and {}."))
    return "multiplication", (a, b), asked.format(a, b), " ".join(steps), a * b


def _division(rng: random.Random) -> _Drawn:
    size, full = rng.randint(3, 12), rng.randint(4, 20)
    left = rng.randint(1, size - 1)
    total, goods, name = size * full + left, rng.choice(_GOODS), rng.choice(_NAMES)
    form = rng.choice(("boxes", "left"))
    asked = {"boxes": "How many boxes can be filled?", "left": f"How many {goods} are left over?"}[form]
    told = rng.choice(
        (
            f"{name} packs {total} {goods} into boxes of {size}. {asked}",
            f"A box holds {size} {goods}. {name} has {total} {goods}. {asked}",
            f"There are {total} {goods}, and each box takes {size} of them. {asked}",
        )
    )
    steps = (
        f"{size} * {full} = {size * full}, and one more box would need {size * (full + 1)}, more than {total}. "
        f"So {full} boxes are full. {total} - {size * full} = {left}, so the remainder is {left}."
    )
    return form, (total, size), told, steps, full if form == "boxes" else left


def _equation(rng: random.Random) -> _Drawn:
    a, b, x = rng.randint(2, 12), rng.randint(1, 20), rng.randint(2, 15)
    form = rng.choice(("plus", "minus", "bracket"))
    if form == "plus":
        c, written = a * x + b, f"{a}x + {b}"
        first = f"Subtract {b} from both sides: {c} - {b} = {a * x}, so {a}x is {a * x}."
        last = f"Divide by {a}: {a * x} / {a} = {x}, so x is {x}."
    elif form == "minus":
        c, written = a * x - b, f"{a}x - {b}"
        first = f"Add {b} to both sides: {c} + {b} = {a * x}, so {a}x is {a * x}."
        last = f"Divide by {a}: {a * x} / {a} = {x}, so x is {x}."
    else:
        c, written = a * (x + b), f"{a}(x + {b})"
        first = f"Divide both sides by {a}: {c} / {a} = {x + b}, so x + {b} is {x + b}."
        last = f"Subtract {b}: {x + b} - {b} = {x}, so x is {x}."
    ways = ("Solve {} = {} for x.", "Find x if {} = {}.", "What is x when {} = {}?", "For which x does {} = {} hold?")
    return form, (a, b, c), rng.choice(ways).format(written, c), f"{first} {last}", x


def _percent(rng: random.Random) -> _Drawn:
    p, n = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80)), 20 * rng.randint(2, 40)
    part, form = n * p // 100, rng.choice(("of", "discount", "rise"))
    steps = f"{p}% of {n}: {n} * {p} = {n * p}, and {n * p} / 100 = {part}."
    if form == "of":
        ways = ("What is {}% of {}?", "Find {}% of {}.", "Compute {} percent of {}.")
        return form, (p, n), rng.choice(ways).format(p, n), steps, part
    if form == "discount":
        told = rng.choice(
            (
                f"A coat costs ${n}. In the sale it is {p}% cheaper. What does it cost now, in dollars?",
                f"The price of a bicycle is ${n}, with {p}% off today. How many dollars are to be paid?",
            )
        )
        return form, (p, n), told, f"{steps} Take it off: {n} - {part} = {n - part}.", n - part
    told = rng.choice(
        (
            f"A school had {n} pupils and grew by {p}%. How many pupils does it have now?",
            f"A village of {n} people grows by {p}% in ten years. How many people live there then?",
        )
    )
    return form, (p, n), told, f"{steps} Add it: {n} + {part} = {n + part}.", n + part


def _ratio(rng: random.Random) -> _Drawn:
    a, b = rng.sample(range(1, 8), 2)
    unit = rng.randint(3, 15)
    total, (first, second) = (a + b) * unit, rng.sample(_NAMES, 2)
    form = rng.choice(("first", "second"))
    who, share = (first, a) if form == "first" else (second, b)
    told = rng.choice(
        (
            f"{first} and {second} share ${total} in the ratio {a}:{b}. How many dollars does {who} get?",
            f"{total} dollars are divided between {first} and {second} as {a}:{b}. What is the part of {who}?",
        )
    )
    steps = (
        f"There are {a} + {b} = {a + b} equal parts. One part is {total} / {a + b} = {unit}. "
        f"{who} gets {share} of them: {share} * {unit} = {share * unit}."
    )
    return form, (total, a, b), told, steps, share * unit


def _sequence(rng: random.Random) -> _Drawn:
    form = rng.choice(("next", "nth", "doubling"))
    start, step = rng.randint(1, 30), rng.randint(2, 12)
    if form == "doubling":
        start, ratio = rng.randint(1, 6), rng.choice((2, 3))
        terms = [start * ratio**n for n in range(5)]
        told = f"What comes next: {', '.join(map(str, terms[:4]))}, ...?"
        steps = (
            f"Each term is {ratio} times the one before: {terms[0]} * {ratio} = {terms[1]}, {terms[1]} * {ratio} = "
            f"{terms[2]}, {terms[2]} * {ratio} = {terms[3]}. The next is {terms[3]} * {ratio} = {terms[4]}."
        )
        return form, tuple(terms[:4]), told, steps, terms[4]
    terms = [start + step * n for n in range(4)]
    shown = ", ".join(map(str, terms))
    why = f"The terms grow by {terms[1]} - {terms[0]} = {step} each time."
    if form == "next":
        ways = (f"What comes next: {shown}, ...?", f"Continue the sequence {shown} by one term.")
        answer = terms[3] + step
        return form, tuple(terms), rng.choice(ways), f"{why} {terms[3]} + {step} = {answer}.", answer
    n = rng.randint(8, 20)
    grown = step * (n - 1)
    told = f"A sequence begins {shown}, ... and goes on in the same way. What is term number {n}?"
    steps = (
        f"{why} From the first term to term {n} there are {n} - 1 = {n - 1} steps. {n - 1} * {step} = {grown}. "
        f"{start} + {grown} = {start + grown}."
    )
    return form, (*terms, n), told, steps, start + grown


def _shape(rng: random.Random) -> _Drawn:
    form, thing = (
        rng.choice(("area", "perimeter", "triangle")),
        rng.choice(("garden", "room", "field", "sheet of paper")),
    )
    a, b = rng.randint(3, 30), rng.randint(3, 30)
    unit = "centimetres" if thing == "sheet of paper" else "metres"
    if form == "triangle":
        a *= 2
        told = f"A triangle has a base of {a} {unit} and a height of {b} {unit}. What is its area in square {unit}?"
        steps = f"The area is half of base times height. {a} * {b} = {a * b}. {a * b} / 2 = {a * b // 2}."
        return form, (a, b), told, steps, a * b // 2
    sides = rng.choice((f"is {a} {unit} long and {b} {unit} wide", f"measures {a} by {b} {unit}"))
    if form == "area":
        told = f"A rectangular {thing} {sides}. What is its area in square {unit}?"
        return form, (a, b), told, f"The area is length times width: {a} * {b} = {a * b}.", a * b
    told = f"A rectangular {thing} {sides}. What is its perimeter in {unit}?"
    steps = f"Length plus width: {a} + {b} = {a + b}. Each side counts twice: {a + b} * 2 = {2 * (a + b)}."
    return form, (a, b), told, steps, 2 * (a + b)


def _conversion(rng: random.Random) -> _Drawn:
    big, small, factor = rng.choice(_UNITS)
    n, form = rng.randint(2, 30), rng.choice(("down", "up"))
    rule = f"One {big[:-1]} has {factor} {small}."
    value, source, target = (n, big, small) if form == "down" else (n * factor, small, big)
    ways = ("How many {2} are {0} {1}?", "Convert {0} {1} to {2}.", "Express {0} {1} in {2}.")
    told = rng.choice(ways).format(value, source, target)
    if form == "down":
        return form, (n, factor), told, f"{rule} {n} * {factor} = {n * factor}.", n * factor
    return form, (n * factor, factor), told, f"{rule} {n * factor} / {factor} = {n}.", n


def _gcd(rng: random.Random) -> _Drawn:
    common = rng.randint(2, 15)
    b, a = sorted(common * factor for factor in rng.sample(range(2, 15), 2))
    steps, x, y = ["Use Euclid's algorithm: divide, then go on with the remainder."], a, b
    while y:
        steps.append(f"{y} * {x // y} = {x - x % y} and {x} - {x - x % y} = {x % y}.")
        x, y = y, x % y
    steps.append(f"The remainder is 0, so the last divisor {x} is the greatest common divisor.")
    ways = (
        "What is the greatest common divisor of {} and {}?",
        "Find the largest number that divides both {} and {}.",
        "Compute gcd({}, {}).",
    )
    return "gcd", (a, b), rng.choice(ways).format(a, b), " ".join(steps), x


def _mean(rng: random.Random) -> _Drawn:
    count = rng.randint(3, 6)
    numbers = [rng.randint(2, 40) for _ in range(count - 1)]
    numbers.append(rng.randint(1, 8) * count - sum(numbers) % count)
    total = sum(numbers)
    ways = (
        "What is the mean of {}?",
        "Find the average of these numbers: {}.",
        "A measurement gave {}. What is the mean?",
    )
    steps = f"The sum is {' + '.join(map(str, numbers))} = {total}. There are {count} numbers: {total} / {count} = "
    told = rng.choice(ways).format(", ".join(map(str, numbers)))
    return "mean", tuple(numbers), told, f"{steps}{total // count}.", total // count


def _money(rng: random.Random) -> _Drawn:
    name, (one, two) = rng.choice(_NAMES), rng.sample(_GOODS, 2)
    m, n, p, q = (rng.randint(2, 9) for _ in range(4))
    cost = m * p + n * q
    total = f"The {one} cost {m} * {p} = {m * p} dollars. The {two} cost {n} * {q} = {n * q} dollars. "
    total += f"Together that is {m * p} + {n * q} = {cost} dollars."
    form = rng.choice(("change", "saving"))
    if form == "change":
        paid = cost + rng.randint(2, 40)
        told = rng.choice(
            (
                f"{name} buys {m} {one} at ${p} each and {n} {two} at ${q} each. {name} pays with ${paid}. "
                f"How many dollars does {name} get back?",
                f"At the market {m} {one} go for ${p} each, and {name} takes all of them. {name} also takes {n} {two} "
                f"for ${q} each. At the start there were ${paid} in the purse. How many dollars are left?",
            )
        )
        return form, (m, p, n, q, paid), told, f"{total} {paid} - {cost} = {paid - cost}.", paid - cost
    weeks, start = rng.randint(3, 12), rng.randint(10, 60)
    told = rng.choice(
        (
            f"{name} has ${start} and saves ${p} every week. After {weeks} weeks {name} buys a present for ${q}. "
            f"How many dollars are left?",
            f"There are ${start} in the savings box of {name}. Every week ${p} are added. {weeks} weeks later {name} "
            f"takes out ${q}. How many dollars does the box hold now?",
        )
    )
    saved = weeks * p
    steps = (
        f"In {weeks} weeks {name} saves {weeks} * {p} = {saved} dollars. {start} + {saved} = {start + saved}. "
        f"{start + saved} - {q} = {start + saved - q}."
    )
    return form, (start, p, weeks, q), told, steps, start + saved - q


FAMILIES: dict[str, Callable[[random.Random], _Drawn]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "division": _division,
    "equation": _equation,
    "percent": _percent,
    "ratio": _ratio,
    "sequence": _sequence,
    "shape": _shape,
    "conversion": _conversion,
    "gcd": _gcd,
    "mean": _mean,
    "money": _money,
}
