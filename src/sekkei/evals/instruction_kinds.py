"""The 25 kinds of checkable instructions of IFEval, each a function of the reply and its keyword arguments.

    KINDS["punctuation:no_comma"](text) -> bool          Zhou et al. 2023, arXiv:2311.07911, table 1

What counts follows the behaviour of the published checker, where the paper leaves it open: keywords are regular
expressions without case, a "word" is a run of \\w, paragraphs are parted by *** (or by an empty line in
`nth_paragraph_first_word`), *a* and **a** are highlights, bullets begin with * or -.
Two parts need a model of language, and ours is another than the published one: sentences come from `nltk`'s Punkt
algorithm with short lists of abbreviations and starters instead of a trained file (it would have to be fetched),
languages from `py3langid` instead of `langdetect` (which draws at random). docs/evaluation.md says how often that
matters.

What it does not handle: describing or generating instructions (only checking).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from sekkei.core.errors import ConfigError, UserError
from sekkei.text.language import detect

Relation = Literal["less than", "at least"]
# Behind these a point ends no sentence, unless one of the starters follows.
ABBREVIATIONS = (
    *("mr", "mrs", "ms", "dr", "prof", "jr", "st", "messrs", "gen", "sen", "adm", "lt", "ph.d", "vs", "a.m", "p.m"),
    *("u.s", "u.k", "u.n", "d.c", "inc", "ltd", "co", "corp", "cos", "bros", "wed", "fri"),
    *("jan", "feb", "mar", "aug", "sep", "sept", "oct", "nov", "dec"),
)
STARTERS = (
    "he",
    "it",
    "this",
    "these",
    "the",
    "in",
    "if",
    "but",
    "they",
    "i",
    "when",
    "while",
    "there",
    "so",
    "however",
)
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


def compare(count: int, relation: Relation, threshold: int) -> bool:
    """Raises ConfigError for an unknown relation."""
    if relation not in ("less than", "at least"):
        raise ConfigError("relation", f"got {relation!r}, must be 'less than' or 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


# -- words ------------------------------------------------------------------------------------------------------------


def pattern(words: str) -> re.Pattern[str]:
    """Keywords are regular expressions; one that is none ("C++") is taken literally."""
    try:
        return re.compile(words.strip(), re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(words.strip()), re.IGNORECASE)


def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(pattern(word).search(text) for word in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return compare(len(pattern(keyword).findall(text)), relation, frequency)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{pattern(word).pattern}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def number_words(text: str, num_words: int, relation: Relation) -> bool:
    return compare(len(_words()(text)), relation, num_words)


def number_sentences(text: str, num_sentences: int, relation: Relation) -> bool:
    return compare(len(_splitter().tokenize(text)), relation, num_sentences)


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    words = _word_tokenizer()
    found = [word for sentence in _splitter().tokenize(text) for word in words(sentence)]
    return compare(sum(word.isupper() for word in found), capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
    return "," not in text


# -- paragraphs and marks ---------------------------------------------------------------------------------------------


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _framed(re.split(r"\s?\*\*\*\s?", text))
    return parts is not None and len(parts) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth_paragraph <= filled:
        return False
    words = parts[nth_paragraph - 1].split()  # empty ones before it count: so the published checker reads it
    first = re.match(r"""[^.,?!'"]*""", words[0].lstrip("'").lstrip('"').lower()) if words else None
    return first is not None and filled == num_paragraphs and first[0] == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker) or pattern(marker).pattern.lower(), text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    return any(choice in text for choice in CHOICES)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*([^\n\*]*)\*\*", text) if part.strip()]
    return len(single) + len(double) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


def title(text: str) -> bool:
    return any(part.lstrip("<").rstrip(">").strip() for part in re.findall(r"<<[^\n]+>>", text))


# -- whole replies ----------------------------------------------------------------------------------------------------


def response_language(text: str, language: str) -> bool:
    return not any(map(str.isalpha, text)) or detect(text)[0] == language.partition("-")[0]


def english_capital(text: str) -> bool:
    return text.isupper() and response_language(text.lower(), "en")


def english_lowercase(text: str) -> bool:
    return text.islower() and response_language(text, "en")


def json_format(text: str) -> bool:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def two_responses(text: str) -> bool:
    parts = _framed(text.split("******"))
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _framed(parts: Sequence[str]) -> list[str] | None:
    """The parts without an empty first and last one; None where one between them is empty."""
    inner = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return inner if all(part.strip() for part in inner) else None


@cache
def _splitter() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types, parameters.sent_starters = set(ABBREVIATIONS), set(STARTERS)
    return PunktSentenceTokenizer(parameters)


@cache
def _word_tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


@cache
def _words() -> Callable[[str], list[str]]:
    from nltk.tokenize import RegexpTokenizer  # its \w holds the vowel signs of Indic scripts, which `re`'s does not

    return RegexpTokenizer(r"\w+").tokenize


def require() -> None:
    """Raises UserError where the library that counts sentences is missing."""
    try:
        _splitter()
    except ImportError:
        raise UserError("ifeval counts sentences with nltk: pip install 'sekkei[eval]'") from None


KINDS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
