"""How good a ranking is, against judgements: nDCG@k, recall@k, MRR. The definitions are TREC's, as ranx computes them.

    DCG@k   = sum over ranks i <= k of grade_i / log2(i + 1)         (Järvelin and Kekäläinen 2002; linear gain)
    nDCG@k  = DCG@k / DCG@k of the best possible order
    recall@k = relevant ones in the first k / all relevant ones      (grade > 0 is relevant)
    MRR     = 1 / rank of the first relevant one, 0 if none is ranked

Each is averaged over the judged queries that have a relevant document; a query without a ranking counts as 0. What was
not judged counts as not relevant, which favours systems whose rankings were pooled for the judging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Judgements = Mapping[str, int]  # document -> grade


def ndcg(ranking: Sequence[str], judgements: Judgements, k: int) -> float:
    """nDCG@k of one ranking (each document once)."""
    best = sorted((grade for grade in judgements.values() if grade > 0), reverse=True)
    ideal = _dcg(best[:k])
    return _dcg([max(0, judgements.get(name, 0)) for name in ranking[:k]]) / ideal if ideal else 0.0


def recall(ranking: Sequence[str], judgements: Judgements, k: int) -> float:
    """Share of the relevant documents that stand in the first k."""
    relevant = {name for name, grade in judgements.items() if grade > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], judgements: Judgements) -> float:
    """1 / rank of the first relevant document."""
    return next((1.0 / rank for rank, name in enumerate(ranking, 1) if judgements.get(name, 0) > 0), 0.0)


def scores(
    rankings: Mapping[str, Sequence[str]], judged: Mapping[str, Judgements], recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """The means over all queries that have a relevant document.

    Returns:
        {"queries", "ndcg@10", "recall@…", "mrr"}
    """
    rows = [
        (rankings.get(query, ()), grades) for query, grades in judged.items() if any(g > 0 for g in grades.values())
    ]
    measured = {
        "ndcg@10": [ndcg(ranking, grades, 10) for ranking, grades in rows],
        **{f"recall@{k}": [recall(ranking, grades, k) for ranking, grades in rows] for k in recall_at},
        "mrr": [reciprocal_rank(ranking, grades) for ranking, grades in rows],
    }
    return {"queries": len(rows), **{name: math.fsum(values) / max(1, len(rows)) for name, values in measured.items()}}


def _dcg(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))
