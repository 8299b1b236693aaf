r"""Final answers: find the one that a reply commits to, and say whether two of them mean the same.

    "... so it costs $1,250.50. #### 1,250.50"   -> "1,250.50"
    "... which gives \boxed{\frac{3}{4}}."       -> "\frac{3}{4}"
    "<think> 6 * 7 = 42</think> answer: 42"      -> "42"

`same_answer` compares exact fractions where both sides are numbers ("0.75" = "3/4" = "\frac{3}{4}", "1,250" =
"$1250.00", "12 apples" = "12"), else the words without case, surrounding punctuation and spaces.

The forms: \boxed{} (Hendrycks et al. 2021, MATH), "#### N" (Cobbe et al. 2021, GSM8K), "answer: N", "answer is N".
The last one that the visible part of the reply writes counts. A reply that is nothing but a number counts as a
whole; the last number of a longer text does not: it is as often a step as an answer.

What it does not handle: algebra ("2x" and "x + x" differ), intervals, sets, rounding (1/3 and 0.333 differ),
conversion between units ("1 km" and "1000 m" differ because the numbers do; "5 cm" and "5 m" are the same number
and count as the same), percentages as fractions ("50%" is 50, not 1/2).
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[-+]?\.[0-9]+"
_MARKED = re.compile(
    r"\\boxed\s*\{|####[ \t]*|\banswer[ \t]*(?:\*\*)?[ \t]*(?:is[ \t]*:?|:|=)[ \t]*(?:\*\*)?[ \t]*", re.IGNORECASE
)
_VALUE = re.compile(rf"(?:(?P<whole>[-+]?[0-9]+) )?(?P<over>{_NUMBER})(?: ?/ ?(?P<under>[0-9]+(?:\.[0-9]+)?))?")
_UNIT = re.compile(r"(?: ?(?:%|°|[$€£¥]|[^\W\d_]+(?:[ /-][^\W\d_]+){0,3}(?:\^?[23]|[²³])?))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
# Words that look like a unit behind a number and change its value instead.
_NOT_UNITS = frozenset(
    (
        *("x", "y", "z", "n", "i", "e", "k", "pi", "sqrt", "and", "or", "to", "times", "am", "pm"),
        *("half", "dozen", "hundred", "thousand", "million", "billion", "trillion"),
    )
)
_MAX_DIGITS = 100  # longer "numbers" are noise, and exact arithmetic on them is slow


def extract_answer(text: str) -> str | None:
    """The answer that `text` commits to, as written (see the header for the forms), or None.

    Only what follows the last closed think block is read; a block that was opened and not closed hides all.
    """
    visible = text.rpartition("</think>")[2]
    if "<think>" in visible:
        return None
    marks = list(_MARKED.finditer(visible))
    if not marks:
        whole = visible.strip()
        return whole if _number(_plain(whole)) is not None else None
    mark = marks[-1]
    rest = visible[mark.end() :]
    found = _braced(rest) if mark[0].endswith("{") else _sentence(rest)
    return found or None


def normalise(answer: str) -> str:
    """One spelling per value: a reduced fraction for numbers ("1250.5" -> "2501/2"), else the bare words."""
    plain = _plain(answer)
    number = _number(plain)
    return plain if number is None else str(number)


def same_answer(a: str, b: str) -> bool:
    """Whether two answers have the same value. Exact: no tolerance. Nothing but an empty answer equals one."""
    return normalise(a) == normalise(b)


def _braced(rest: str) -> str | None:
    """The text up to the brace that closes one already opened, or None when it never closes."""
    depth = 1
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:place].strip()
    return None


def _sentence(rest: str) -> str:
    """The first line up to the end of its sentence; the point in 3.5 does not end one."""
    line = rest.partition("\n")[0]
    return re.split(r"[.;!?](?=\s|$)", line, maxsplit=1)[0].strip().rstrip("*").strip()


def _plain(answer: str) -> str:
    """Without LaTeX dressing, surrounding punctuation, case and repeated spaces."""
    text = answer.replace("\\$", "$").replace("\\%", "%").replace("−", "-").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = _FRACTION.sub(r" \1/\2 ", text)
    text = re.sub(r"\\[,;!: ]", " ", text.replace("\\!", ""))
    text = re.sub(r"\s+", " ", text).strip().strip("*\"'`").strip().rstrip(".;:!?,").strip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text.casefold()


def _number(plain: str) -> Fraction | None:
    """The exact value of a plain text that is one number, perhaps with a currency, a unit or `x =` around it."""
    text = re.sub(r"^[a-z] ?= ?", "", plain)
    text = re.sub(r"^([-+]?) ?[$€£¥] ?", r"\1", text)
    found = _VALUE.match(text)
    if not found or len(found[0]) > _MAX_DIGITS:
        return None
    unit = text[found.end() :]
    if not _UNIT.fullmatch(unit) or _NOT_UNITS.intersection(re.findall(r"[^\W\d_]+", unit)):
        return None
    value = Fraction(found["over"].replace(",", ""))
    if found["under"]:
        under = Fraction(found["under"])
        if under == 0:
            return None
        value /= under
    if found["whole"]:
        if not found["under"] or found["over"][0] in "+-":  # "3 4" is two numbers, "3 1/2" is one
            return None
        whole = Fraction(found["whole"])
        value = whole - value if found["whole"].startswith("-") else whole + value
    return value
