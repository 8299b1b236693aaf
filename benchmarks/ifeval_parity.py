"""Our checks of IFEval's instructions beside the published ones, as lm-eval ships them, on made replies.

    python benchmarks/ifeval_parity.py --peer /tmp/peer/bin/python --golden tests/evals/golden/ifeval.jsonl
    python benchmarks/ifeval_parity.py --peer /tmp/peer/bin/python --items input_data.jsonl

The peer is a Python that has `lm-eval[ifeval]` and NLTK's punkt_tab data (NLTK_DATA). Replies are made at random from
pieces that matter to the checks (bullets, stars, quotes, postscripts, other languages, capitals …), arguments are drawn
near what the reply holds, so both verdicts are common. They are above 0 and not empty, since lm-eval drops such ones.
With --items the instructions are those of a published file. Every verdict is compared, strict and loose; differences
are counted by kind and shown.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.evals.instruction_kinds import KINDS
from sekkei.evals.instructions import follows, read_instructed

WORKER = """
import json, sys
import langdetect
from lm_eval.tasks.ifeval import instructions_registry, utils
langdetect.DetectorFactory.seed = 0
for line in sys.stdin:
    case = json.loads(line)
    made = utils.InputExample(0, [case["kind"]], "p", [case["kwargs"]])
    strict = utils.test_instruction_following_strict(made, case["reply"]).follow_all_instructions
    loose = utils.test_instruction_following_loose(made, case["reply"]).follow_all_instructions
    print(json.dumps([bool(strict), bool(loose)]))
"""
SENTENCES = (
    "The garden was quiet that morning.", "Nobody knew where the old map had gone!", "Did you see Dr. Brown at noon?",
    "We walked, talked and laughed.", "It cost 3.50 in all.", "The TRAIN left at 5 p.m. and we MISSED it.",
    "He said \"never again\" and left.", "E.g. bread, milk and eggs are cheap.", "WHAT A DAY!", "so it goes.",
    "My answer is yes.", "My answer is maybe.", "Fill in [name] and [street address] here.", "Any other questions?",
)  # fmt: skip
FOREIGN = {
    "de": "Der Garten war an diesem Morgen sehr still und niemand wusste, wo die alte Karte geblieben war.",
    "fr": "Le jardin était calme ce matin-là et personne ne savait où se trouvait la vieille carte.",
    "es": "El jardín estaba tranquilo aquella mañana y nadie sabía dónde estaba el viejo mapa.",
    "it": "Il giardino era tranquillo quella mattina e nessuno sapeva dove fosse la vecchia mappa.",
    "ja": "その朝、庭は静かで、古い地図がどこへ行ったのか誰も知りませんでした。",
    "ru": "В то утро в саду было тихо, и никто не знал, куда делась старая карта.",
    "hi": "उस सुबह बगीचा शांत था और किसी को नहीं पता था कि पुराना नक्शा कहाँ गया।",
    "ko": "그날 아침 정원은 조용했고 아무도 오래된 지도가 어디에 있는지 몰랐다.",
}
PIECES = (
    "* first point", "- second point", "  * third point", "** not a point", "*highlighted part*", "**bold part**",
    "***", "******", "<<A title>>", "<< >>", "SECTION 1", "Section 2", "P.S. Do write.", "p.s. lower", "P.P.S. More.",
    "P. S. spaced", '{"a": 1}', '```json\n{"a": [1, 2]}\n```', "Sure, here it is:", "\n", "Is there anything else?",
)  # fmt: skip
WORDS = ("garden", "map", "walk", "never", "train", "bread", "no.?ne", "Day")


def reply(rng: random.Random) -> str:
    """One made reply."""
    if rng.random() < 0.12:
        return rng.choice((*FOREIGN.values(), "", " \n ", '{"a": 1}', '```JSON\n{"b": null}\n```', "{broken"))
    parts = [rng.choice(PIECES if rng.random() < 0.4 else SENTENCES) for _ in range(rng.randint(1, 9))]
    text = "".join(part + rng.choice((" ", "\n", "\n\n")) for part in parts)
    change: Callable[[str], str] = rng.choice(
        (str, str, str, str.strip, str.upper, str.lower, lambda t: f'"{t.strip()}"')
    )
    return change(text)


def towards(kind: str, text: str, rng: random.Random) -> str:
    """The reply changed towards what a kind asks for, where chance alone would hardly meet it."""
    other = rng.choice(SENTENCES)
    made = {
        "detectable_format:number_bullet_lists": f"* {other}\n* two\n{other}",
        "detectable_format:multiple_sections": f"Section 1\n{text}\nSECTION 2 {other} section 3",
        "detectable_format:json_format": json.dumps({"text": text, "list": [1, None]}) + rng.choice(("", "\n```", "x")),
        "combination:two_responses": f"{other}\n******\n{rng.choice(SENTENCES)}{rng.choice(('', '******'))}",
        "startend:quotation": f'{rng.choice(("", "Here:"))}"{text}"',
    }
    return made.get(kind, text)


def arguments(kind: str, text: str, rng: random.Random) -> dict[str, Any]:
    """Arguments of a kind, drawn near what the reply holds."""
    relation = rng.choice(("less than", "at least"))
    sentences = len(re.findall(r"[.!?](?:\s|$)", text))
    near: Callable[[int], int] = lambda count: max(1, count + rng.randint(-1, 1))  # noqa: E731
    words = re.findall(r"\w+", text) or ["none"]
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    nth = rng.randint(1, len(paragraphs) + 1)
    first = paragraphs[nth - 1].split()[0].strip("\"'.,!?").lower() if nth <= len(paragraphs) else ""
    letter = rng.choice("aeTx")
    made: dict[str, dict[str, Any]] = {
        "keywords:existence": {"keywords": rng.sample((*WORDS, "the"), rng.randint(1, 2))},
        "keywords:frequency": {
            "keyword": rng.choice(("the", "a", "garden", "n.t")), "frequency": near(2), "relation": relation,
        },
        "keywords:forbidden_words": {"forbidden_words": rng.sample(WORDS, 2)},
        "keywords:letter_frequency": {
            "letter": letter, "let_frequency": near(text.lower().count(letter.lower())), "let_relation": relation,
        },
        "language:response_language": {"language": rng.choice((*FOREIGN, "en", "en"))},
        "length_constraints:number_sentences": {"num_sentences": near(sentences), "relation": relation},
        "length_constraints:number_paragraphs": {"num_paragraphs": near(text.count("***") + 1)},
        "length_constraints:number_words": {"num_words": near(len(words)), "relation": relation},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": len(paragraphs) + rng.choice((0, 0, 0, 1)), "nth_paragraph": nth,
            "first_word": first or "x",
        },
        "detectable_content:number_placeholders": {"num_placeholders": near(text.count("["))},
        "detectable_content:postscript": {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
        "detectable_format:number_bullet_lists": {"num_bullets": near(text.count("\n- ") + text.count("* "))},
        "detectable_format:number_highlighted_sections": {"num_highlights": near(text.count("*") // 3)},
        "detectable_format:multiple_sections": {
            "section_spliter": rng.choice(("Section", "SECTION")), "num_sections": rng.randint(1, 2),
        },
        "combination:repeat_prompt": {
            "prompt_to_repeat": rng.choice((text[: len(text) // 2], "The garden")).strip() or "x",
        },
        "startend:end_checker": {"end_phrase": rng.choice((text.strip()[-12:], "Any other questions?")) or "x"},
        "change_case:capital_word_frequency": {
            "capital_frequency": near(sum(one.isupper() for one in words)), "capital_relation": relation,
        },
    }  # fmt: skip
    return made.get(kind, {})


def made_cases(per_kind: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    cases = []
    for kind in KINDS:
        for _ in range(per_kind):
            text = reply(rng)
            text = towards(kind, text, rng) if rng.random() < 0.5 else text
            cases.append({"kind": kind, "kwargs": arguments(kind, text, rng), "reply": text})
    return cases


def published_cases(path: Path, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    cases = []
    for item in read_instructed(path):
        text = reply(rng)
        cases += [{"kind": kind, "kwargs": dict(given), "reply": text} for kind, given in item.instructions]
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="a Python with lm-eval[ifeval]")
    parser.add_argument("--items", type=Path, help="a published input_data.jsonl: its instructions, made replies")
    parser.add_argument("--per-kind", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", type=Path, help="write cases and the peer's verdicts here")
    given = parser.parse_args()
    cases = published_cases(given.items, given.seed) if given.items else made_cases(given.per_kind, given.seed)
    text = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([given.peer, "-c", WORKER], input=text, capture_output=True, text=True, check=True)
    verdicts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(verdicts) == len(cases), done.stderr[-2000:]
    differ: Counter[str] = Counter()
    yes = 0
    for case, (strict, loose) in zip(cases, verdicts):
        ours = [follows(case["reply"], case["kind"], case["kwargs"], way) for way in (True, False)]
        case |= {"strict": strict, "loose": loose}
        yes += strict
        for way, mine, theirs in zip(("strict", "loose"), ours, (strict, loose)):
            if mine != theirs:
                differ[case["kind"]] += 1
                print(f"{case['kind']} {way}: ours {mine}, peer {theirs}: {case['kwargs']} {case['reply'][:160]!r}")
    kinds = len({case["kind"] for case in cases})
    print(f"{len(cases)} cases of {kinds} kinds, {yes} followed strictly; differences of {2 * len(cases)} verdicts:")
    print(dict(differ) or "none")
    if given.golden:
        atomic.write_text(given.golden, "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases))


if __name__ == "__main__":
    main()
