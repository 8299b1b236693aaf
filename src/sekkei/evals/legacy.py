"""BLEU, chrF and ROUGE: how many words and letters an answer shares with a reference. For comparison only.

    {"prompt": "…", "reference": "…" or ["…", …]}     also "instruction" (+ "input"), "question"; "output", "answer"

    bleu, chrf   Papineni et al. 2002, Popović 2015, through `sacrebleu`: of the whole corpus, its bootstrap's interval
    rouge1/2/L   Lin 2004, F1 through `rouge-score`; the best of the references, mean over answers

A right answer in other words scores badly and a wrong one in the reference's words well; docs/evaluation.md measures
how badly these agree with people. Use a judge (`sekkei judge`) or checkable tasks instead.

What it does not handle: tokenisation of unspaced scripts (BLEU's 13a and ROUGE's words are for spaced
ones; chrF is not).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.evals.ask import Progress, no_progress, sample_all
from sekkei.evals.items import read_items
from sekkei.evals.maths import sampling
from sekkei.evals.outcome import RESAMPLES, Figure, Outcome, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user

ROUGES = ("rouge1", "rouge2", "rougeL")
PROMPTS, REFERENCES = ("prompt", "instruction", "question"), ("reference", "references", "output", "answer", "target")


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """A prompt and the answers that people wrote."""

    prompt: str
    references: tuple[str, ...]


def read_referenced(path: Path) -> list[Referenced]:
    """Prompts with references of a JSON-lines file.

    Raises:
        UserError: the file cannot be read, or a line lacks one of the two.
    """
    return read_items(path, _referenced)


def _referenced(data: Mapping[str, Any]) -> Referenced:
    prompt = next((data[name] for name in PROMPTS if name in data), None)
    found = next((data[name] for name in REFERENCES if name in data), None)
    if prompt is None or not found:
        raise ValueError(f"needs one of {', '.join(PROMPTS)} and one of {', '.join(REFERENCES)}")
    references = (found,) if isinstance(found, str) else tuple(map(str, found))
    more = f"\n\n{data['input']}" if data.get("input") else ""
    return Referenced(prompt=f"{prompt}{more}", references=references)


def evaluate_legacy(
    llm: LLM, items: Sequence[Referenced], settings: Settings, progress: Progress = no_progress
) -> Outcome:
    """BLEU, chrF and ROUGE of one reply per prompt.

    Raises:
        UserError: no items, several samples are asked for, or a library is missing.
    """
    if not items:
        raise UserError("legacy: there are no prompts")
    if settings.n != 1:
        raise UserError(f"legacy: takes one reply a prompt, got samples={settings.n}")
    found = sample_all(llm, [[user(item.prompt)] for item in items], settings, progress)
    texts, references = [row[0].text for row in found], [item.references for item in items]
    rouge = {name: [overlaps(text, some)[name] for text, some in zip(texts, references)] for name in ROUGES}
    return Outcome(
        task="legacy",
        items=len(items),
        prompt="{prompt}",
        scores=rouge,
        figures=corpus_scores(texts, references)
        | {name: mean(values, settings.seed) for name, values in rouge.items()},
        settings=sampling(settings),
        usage=counted([row[0] for row in found]),
        texts=[(item.prompt, *item.references) for item in items],
        rows=[{"prompt": item.prompt, "reply": text} for item, text in zip(items, texts)],
        notes=["overlap with a reference agrees badly with people: docs/evaluation.md"],
    )


def corpus_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Figure]:
    """BLEU and chrF of a corpus, 0 … 100, with sacrebleu's bootstrap intervals (its mean ± half its width)."""
    bleu, chrf = _sacrebleu()
    most = max(map(len, references))
    streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    found = {}
    for name, metric in (("bleu", bleu()), ("chrf", chrf())):
        value = metric.corpus_score(list(texts), streams).score
        try:
            score = metric.corpus_score(list(texts), streams, n_bootstrap=RESAMPLES)
        except TypeError:  # its mean refuses resamples of which some are exactly 0: no interval then
            found[name] = Figure(value=value)
            continue
        told = json.loads(score.format(width=4, is_json=True, signature=metric.get_signature().format()))
        centre, half = told.get("confidence_mean", 0.0), told.get("confidence_var", 0.0)  # absent where all are 0
        found[name] = Figure(value=value, low=centre - half, high=centre + half)
    return found


def overlaps(text: str, references: Sequence[str]) -> dict[str, float]:
    """Every metric of one answer: "bleu" (of the sentence, smoothed) and "chrf" as 0 … 100, ROUGE's F1 as 0 … 1.

    Raises:
        UserError: a library is missing.
    """
    bleu, chrf = _sacrebleu()
    found = {
        "bleu": bleu(effective_order=True).sentence_score(text, list(references)).score,
        "chrf": chrf().sentence_score(text, list(references)).score,
    }
    scorer = _rouge()
    rows = [scorer.score(reference, text) for reference in references]
    return found | {name: max(row[name].fmeasure for row in rows) for name in ROUGES}


def _sacrebleu() -> tuple[Any, Any]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise UserError("legacy: BLEU and chrF need sacrebleu: pip install 'sekkei[judge]'") from None
    return BLEU, CHRF


def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("legacy: ROUGE needs rouge-score: pip install 'sekkei[judge]'") from None
    return RougeScorer(list(ROUGES), use_stemmer=True)
