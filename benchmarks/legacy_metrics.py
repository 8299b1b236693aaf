"""Do BLEU, chrF and ROUGE agree with people? On PandaLM's test set: 999 pairs of answers, three annotators each.

    python benchmarks/legacy_metrics.py pandalm_testset.json user_oriented_instructions.jsonl --json FILE

The first file is PandaLM's, the second self-instruct's (252 instructions with an answer that a person wrote, which is
the reference). Of each pair a metric prefers the answer that scores higher; the same score is a tie, as people may say,
too. Beside them: the longer answer, the shorter one, and a coin. Agreement with the people's majority is Cohen's kappa
(0 = chance) over all pairs and, where people and metric both prefer one, the share that is the same; intervals resample
questions, since several pairs ask the same. The ceiling is what one annotator reaches against the other two.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core import atomic
from sekkei.evals.items import read_items
from sekkei.evals.legacy import overlaps
from sekkei.judge.intervals import Estimate, bootstrap

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
TIE, FIRST, SECOND = 0, 1, 2


def majority(row: dict[str, Any], names: Sequence[str] = ANNOTATORS) -> int:
    """What most people say; a tie where no verdict has more votes than the others."""
    votes = Counter(row[name] for name in names).most_common()
    return TIE if len(votes) > 1 and votes[0][1] == votes[1][1] else int(votes[0][0])


def preferred(first: float, second: float) -> int:
    return TIE if first == second else FIRST if first > second else SECOND


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa of a [3, 3] table of (weighted) counts."""
    total = table.sum()
    chance = float(table.sum(1) @ table.sum(0)) / total**2
    return (float(np.trace(table)) / total - chance) / (1 - chance) if chance < 1 else float("nan")


def agreement(people: Sequence[int], metric: Sequence[int], question: Sequence[int], seed: int) -> dict[str, Estimate]:
    """Kappa over three verdicts, and the share of equal ones where neither is a tie, by questions."""
    units = max(question) + 1
    tables = np.zeros((units, 3, 3))
    for a, b, unit in zip(people, metric, question):
        tables[unit, a, b] += 1
    counts = tables[:, 1:, 1:]

    def share(weights: np.ndarray) -> float:
        mixed = np.tensordot(weights, counts, 1)
        return float(np.trace(mixed) / mixed.sum())

    return {
        "kappa": bootstrap(lambda weights: kappa(np.tensordot(weights, tables, 1)), units, seed=seed),
        "same of decided": bootstrap(share, units, seed=seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    written = read_items(
        given.references,
        lambda data: [((data["instruction"], one["input"]), one["output"]) for one in data["instances"]],
    )
    references = {key: text for found in written for key, text in found if text.strip()}
    rows = json.loads(given.pairs.read_text(encoding="utf-8"))
    rows = [row for row in rows if (row["instruction"], row["input"]) in references]
    numbers: dict[tuple[str, str], int] = {}
    question = [numbers.setdefault((row["instruction"], row["input"]), len(numbers)) for row in rows]
    people = [majority(row) for row in rows]
    coin = random.Random(given.seed)
    verdicts: dict[str, list[int]] = {}
    for row in rows:
        texts = [str(row[key]) for key in ("response1", "response2")]  # some answers are bare numbers
        reference = references[row["instruction"], row["input"]]
        first, second = (
            overlaps(text, [reference]) | {"longer answer": float(len(text)), "shorter answer": -float(len(text))}
            for text in texts
        )
        for name in first:
            verdicts.setdefault(name, []).append(preferred(first[name], second[name]))
        verdicts.setdefault("coin", []).append(coin.choice((FIRST, SECOND)))
    print(f"{len(rows)} pairs, {len(numbers)} questions; people: {dict(Counter(people))} (0 = tie)")
    found = {name: agreement(people, own, question, given.seed) for name, own in verdicts.items()}
    for name in ANNOTATORS:
        others = [majority(row, [one for one in ANNOTATORS if one != name]) for row in rows]
        found[name] = agreement(others, [row[name] for row in rows], question, given.seed)
    for name, two in found.items():
        told = "  ".join(f"{key} {one.value:6.3f} [{one.low:.3f}, {one.high:.3f}]" for key, one in two.items())
        print(f"{name:<16} {told}")
    if given.json:
        plain = {name: {key: one.as_json() for key, one in two.items()} for name, two in found.items()}
        atomic.write_json(given.json, {"pairs": len(rows), "questions": len(numbers), "agreement": plain})


if __name__ == "__main__":
    main()
